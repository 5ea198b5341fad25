"""lossbook: the place where the loss functions of language-model training live.

An open, local training API around a registry in which a loss is one plain decorated function.
"""

from __future__ import annotations

from .losses import stats
from .losses.registry import get_loss, register_loss
