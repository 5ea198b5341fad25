"""The checks, a file per kind of promise; importing them enters them into the table, in this order."""

from __future__ import annotations

from . import values  # isort: skip
from . import gradients  # isort: skip
from . import order  # isort: skip
from . import sampling  # isort: skip
from . import checkpoints  # isort: skip
from . import mistakes  # isort: skip
from . import retries  # isort: skip

ALL = (values, gradients, order, sampling, checkpoints, mistakes, retries)
