"""`tinker.lib.public_interfaces.training_client`."""

from __future__ import annotations

from ...training import TrainingClient

__all__ = ["TrainingClient"]
