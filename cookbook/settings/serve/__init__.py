"""Settings of `lossbook serve`."""

from .config import ServeConfig as ServeConfig
from .keys import settings_of as settings_of
