"""`tinker.lib.public_interfaces.sampling_client`."""

from __future__ import annotations

from ...sampling import SamplingClient
from ..retry_handler import RetryConfig

__all__ = ["RetryConfig", "SamplingClient"]
