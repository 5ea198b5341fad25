"""`tinker.lib.public_interfaces.service_client`."""

from __future__ import annotations

from ...service import ServiceClient
from ..retry_handler import RetryConfig

__all__ = ["RetryConfig", "ServiceClient"]
