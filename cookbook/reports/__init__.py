"""Reports on runs: plots, and HTML pages with curves, diagnoses, the loss and its token records."""
