"""Custom losses that came as graphs: read, checked, tried out and run, as data and never as code."""

from __future__ import annotations

from .loss import GraphLoss
from .read import Graph, read_graph
from .run import dry_run, run_graph

__all__ = ["Graph", "GraphLoss", "dry_run", "read_graph", "run_graph"]
