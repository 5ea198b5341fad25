"""Data files: read rows, recognise their format, build datums, report on every row, show datums."""
