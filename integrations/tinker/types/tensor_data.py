"""`TensorData` is lossbook's own."""

from __future__ import annotations

from ....datums.inputs import TensorDtype
from ....datums.tensors import TensorData

__all__ = ["TensorData", "TensorDtype"]
