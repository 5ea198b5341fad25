"""`tinker.lib.public_interfaces.custom_loss`."""

from __future__ import annotations

from ...custom_loss import LossHandle, PerDatumLossFn

__all__ = ["LossHandle", "PerDatumLossFn"]
