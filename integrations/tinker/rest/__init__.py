"""`RestClient` and `AdminClient`: what is known about runs, checkpoints and sessions, read from the folder they lie in."""

from .admin import AdminClient
from .client import RestClient

__all__ = ["AdminClient", "RestClient"]
