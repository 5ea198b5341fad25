"""What commands print, at any width: `console` and `table`."""

from .console import MIN_WIDTH, PIPE_WIDTH, console, show
from .table import Column, Table, plain_text, table

__all__ = ["MIN_WIDTH", "PIPE_WIDTH", "Column", "Table", "console", "plain_text", "show", "table"]
