"""`tinker.lib.public_interfaces.rest_client`."""

from __future__ import annotations

from ...rest import RestClient

__all__ = ["RestClient"]
