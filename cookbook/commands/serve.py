"""`lossbook serve`: Tinker's protocol over HTTP, on the models of this machine."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pydantic import BaseModel

from ..extras import require_installed
from ..settings.serve import settings_of

_PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "structlog", "tinker")


def serve(config: BaseModel) -> NoReturn:
    """Serve until SIGTERM or Ctrl-C, then end the process.

    Raises MissingExtraError without the extra `serve`, ConfigError for an address that needs keys or is taken.
    """
    settings = settings_of(config)
    for package in _PACKAGES:
        require_installed(package, "serve", "lossbook serve")
    from ...integrations.serve.http.address import check_address
    from ...integrations.serve.http.server import serve as run

    check_address(settings)
    code = run(settings)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # the interpreter would wait for a call that did not end within the grace
