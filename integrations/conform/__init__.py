"""Promises of a server of Tinker's protocol, checked by what it does: `lossbook conform`, docs/serve/conform.md.

    report = check_server(in_process(), ConformSettings(model="tiny"))
    print(report.table())

Every check goes through a service client with the API of the official SDK, so that any server of the protocol can be asked,
and this process's own door too.
"""

from __future__ import annotations

from .connections import Connection, in_process, over_http
from .promises import PROMISES, Promise
from .report import Finding, Report, Verdict
from .run import check_server
from .settings import ConformSettings

__all__ = [
    "PROMISES",
    "ConformSettings",
    "Connection",
    "Finding",
    "Promise",
    "Report",
    "Verdict",
    "check_server",
    "in_process",
    "over_http",
]
