"""What any money service needs: one noun a file, its invariant in the first line."""
