"""Data files: reading rows, recognising their format, building datums, and reporting what became of each row."""
