"""HTML from templates that escape all data: `render`."""
