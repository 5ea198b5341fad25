"""`lossbook tinker`: run a program that was written for Tinker on this machine, as `python` would run it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...datums.errors import ConfigError
from ...integrations.tinker.alias import STAND_IN
from ...integrations.tinker.settings import PREFIX, Settings, from_environment


def program(words: Sequence[str]) -> partial[int]:
    """What runs `[OPTIONS] SCRIPT ARGS` or `[OPTIONS] -m MODULE ARGS` in place of this process.

    There, and in the Python processes that it starts, `import tinker` means lossbook.integrations.tinker. The options are
    the settings of that. Raises ConfigError for a value that is none, SystemExit for other words.
    """
    parser = _parser()
    options = vars(parser.parse_args(words))
    script, module = options.pop("script"), options.pop("module")
    arguments = script if module is None else ["-m", *module]
    if arguments in ([], ["-m"]):
        parser.error("name a SCRIPT, or a module after -m")
    environment = {**os.environ, **_variables(options)}
    from_environment(environment)  # so that what is wrong is said before the program starts
    paths = [str(STAND_IN), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return partial(_become, [sys.executable, *arguments], environment)


def _become(command: list[str], environment: dict[str, str]) -> int:
    """Run a program in this process's place: with its id, its terminal, its signals."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # where a process cannot become another, and the shell would not wait
        return subprocess.call(command, env=environment)
    os.execve(command[0], command, environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lossbook tinker",
        usage="lossbook tinker [OPTIONS] SCRIPT ARGS\n       lossbook tinker [OPTIONS] -m MODULE ARGS",
        description="Run a program written for Tinker on this machine. The options say what a server would decide.",
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        told: dict[str, Any] = {"dest": name, "help": field.description}
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **told)
        elif name == "models":
            parser.add_argument(flag, action="append", type=_pair, metavar="NAME=FOLDER", **told)
        else:
            parser.add_argument(flag, metavar="VALUE", **told)
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("script", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, folder


def _variables(options: dict[str, Any]) -> dict[str, str]:
    """The options as variables of the environment, where the program finds them."""
    given = {name: value for name, value in options.items() if value is not None}
    if "models" in given:
        try:
            before = json.loads(os.environ.get(f"{PREFIX}MODELS") or "{}")
        except ValueError as error:
            raise ConfigError(f"{PREFIX}MODELS is not JSON: {error}") from None
        given["models"] = json.dumps({**before, **dict(given["models"])})
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in given.items()}
