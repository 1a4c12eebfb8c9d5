"""Who changed what; only ever added to."""
