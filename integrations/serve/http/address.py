"""Where a server listens, and what it says about that when it starts."""

from __future__ import annotations

from pathlib import Path

from ....datums.errors import ConfigError
from ..settings import ServeSettings
from .entrance.guard import is_loopback


def check_address(settings: ServeSettings) -> None:
    """Raise ConfigError for an address that others reach while nobody needs a key."""
    if not settings.keys and not settings.insecure and not is_loopback(settings.host):
        raise ConfigError(
            f"host={settings.host!r} can be reached from other machines, and no keys are set: give --keys, "
            "listen at 127.0.0.1, or say --insecure"
        )


def check_models(settings: ServeSettings) -> None:
    """Raise ConfigError for a model whose place is a path at which nothing is: clients would hear of it much later."""
    for name, place in settings.models.items():
        is_path = place.startswith(("/", ".", "~")) or place.endswith(".gguf")
        if is_path and not Path(place).expanduser().exists():
            raise ConfigError(f"--models {name} {place}: there is no such folder or file")


def greeting(settings: ServeSettings, host: str, port: int) -> list[str]:
    """The first lines: where the server is, what it trains, and what a client's shell needs."""
    shown = f"[{host}]" if ":" in host else host
    own = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else shown
    key = "one of the server's keys" if settings.keys else "tml-local"
    return [
        f"lossbook serves Tinker's protocol at http://{shown}:{port}",
        f"models: {', '.join(settings.models)}",
        f"export TINKER_BASE_URL=http://{own}:{port}",
        f"export TINKER_API_KEY={key}" if not settings.keys else f"export TINKER_API_KEY=...  # {key}",
    ]
