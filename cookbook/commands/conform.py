"""`lossbook conform`: what a server of Tinker's protocol promises, and whether it does."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ...datums.errors import ConfigError

if TYPE_CHECKING:
    from ...integrations.conform import Connection, Finding, Report


def conform(
    base_url: str | None = None,
    in_process: bool = False,
    model: str | None = None,
    api_key: str | None = None,
    only: tyro.conf.UseAppendAction[list[str]] = [],  # noqa: B006
    rank: int | None = None,
    seed: int | None = None,
    examples: int | None = None,
    tokens: int | None = None,
    vocabulary: int | None = None,
    tolerance: float | None = None,
    timeout: float | None = None,
    json: bool = False,
) -> int:
    """Check the promises of a server of Tinker's protocol through the official SDK. The exit code is 1 if one is broken.

    Args:
        base_url: the server's address, such as http://127.0.0.1:8000.
        in_process: check lossbook's own door in this process instead, which needs neither a server nor the SDK.
        model: base model to train adapters of; by default the first that the server names, in process "tiny".
        api_key: the server's key; by default TINKER_API_KEY.
        only: ids of promises, such as --only "sample.*". May be repeated.
        rank: of the adapters.
        seed: of the data that is made up.
        examples: datums per call; the number of samples grows with it.
        tokens: most tokens of a datum.
        vocabulary: token ids are drawn below this.
        tolerance: largest difference of two equal numbers, relative above 1; about 0.05 for a server that computes in bfloat16.
        timeout: seconds that an answer may take.
        json: print the report as JSON instead of a table.
    """
    from ...integrations.conform import check_server
    from ...integrations.conform.settings import settings_of

    if (base_url is None) == (not in_process):
        raise ConfigError("give --base-url URL for a server, or --in-process for lossbook's own door")
    numbers = {"rank": rank, "seed": seed, "examples": examples, "tokens": tokens}
    numbers |= {"vocabulary": vocabulary, "tolerance": tolerance, "timeout": timeout}
    with tempfile.TemporaryDirectory(prefix="lossbook-conform-") as folder:
        connection = _connection(base_url, api_key, Path(folder))
        settings = settings_of(model=model or connection.first_model(), **numbers)
        report = check_server(connection, settings, only, None if json else _told)
    _show(report, json)
    return report.exit_code


def _connection(base_url: str | None, api_key: str | None, folder: Path) -> Connection:
    from ...integrations.conform import in_process, over_http

    if base_url is not None:
        return over_http(base_url, api_key)
    from ...integrations.tinker.settings import configure

    configure(root=folder)
    return in_process()


def _told(finding: Finding) -> None:
    """Which promise was just checked, for somebody who watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{finding.verdict:<14}  {finding.id}", end="", file=sys.stderr, flush=True)


def _show(report: Report, json: bool) -> None:
    from ..terminal import console

    if not json and sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(report.as_json() if json else report.table(console().width))
