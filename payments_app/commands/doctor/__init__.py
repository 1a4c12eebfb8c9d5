"""`flask doctor`: a whole installation looked at, and what to do about what isn't well."""
