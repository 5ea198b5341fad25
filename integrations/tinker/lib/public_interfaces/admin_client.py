"""`tinker.lib.public_interfaces.admin_client`."""

from __future__ import annotations

from ...rest import AdminClient

__all__ = ["AdminClient"]
