"""Which releases of Tinker's SDK speak the protocol that this server speaks."""

from __future__ import annotations

import re

from ..refusals import Refused

#: The oldest that sends `forward` and `forward_backward` as protobuf, where `client/config` asks for it.
OLDEST = (0, 22, 3)
_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")


def too_old(version: str | None = None) -> str:
    """What a client hears whose SDK is older; version: the SDK's, where it is known."""
    oldest = ".".join(map(str, OLDEST))
    this = "this client's is older" if version is None else f"this client has {version}"
    return f"the server needs release {oldest} or newer of the package tinker, and {this}: pip install -U tinker"


def check_version(version: str) -> None:
    """Raise Refused for a client whose SDK is too old to train here. A version that is not known is let in."""
    release = _RELEASE.match(version)
    if release is not None and tuple(int(part or 0) for part in release.groups()) < OLDEST:
        raise Refused(400, too_old(release.group()))
