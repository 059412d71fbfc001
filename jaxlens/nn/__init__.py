"""The modules of a transformer and their arithmetic, one kind per file."""
