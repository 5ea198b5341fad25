"""The command line, `lossbook ...`. Each command is a row of `commands/table.py`; its module is imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..datums.errors import ConfigError, LossbookError, LossConfigError, TaskError, UnknownLossError
from .commands.table import COMMANDS
from .redaction import redacted
from .run.interrupts import StopAtOnce
from .run.loggers import quiet_libraries
from .usage.overview import print_overview

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .usage.flags import Flag

#: Exit codes: of any failure, and of a usage error.
FAILURE, USAGE_ERROR = 1, 2
_USAGE = (ConfigError, LossConfigError, TaskError, UnknownLossError)


def command() -> NoReturn:
    """The command `lossbook`: `main`, then the end of the process. After Ctrl-C it does not wait for what still runs."""
    try:
        sys.exit(_code_of(None))
    except KeyboardInterrupt as stop:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(
            _stop_code(stop)
        )  # the interpreter would finish the calls that the trainer's thread has begun and queued


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 after an error, 2 after a usage error, 130 after Ctrl-C.

    Errors of lossbook are one line on stderr; with --debug anywhere in the line they keep their traceback.
    """
    try:
        return _code_of(arguments)
    except KeyboardInterrupt as stop:
        return _stop_code(stop)


def _stop_code(stop: KeyboardInterrupt) -> int:
    return stop.code if isinstance(stop, StopAtOnce) else 128 + signal.SIGINT


def _code_of(arguments: Sequence[str] | None) -> int:
    """As `main`, but KeyboardInterrupt is raised."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words and not _takes_words(words)
    if debug:
        words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except LossbookError as error:
        if debug:
            raise
        print(redacted(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return USAGE_ERROR if isinstance(error, _USAGE) else FAILURE
    except BrokenPipeError:  # `lossbook losses list | head`: the reader is gone, and the interpreter would flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:  # a disk that is full, a file that is a folder, ...; from a user's function too
        if debug:
            raise
        print(f"{type(error).__name__}: {error} (--debug keeps the traceback)", file=sys.stderr)
        return FAILURE
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILURE if leaving.code else 0
    finally:
        _release_idle()  # the error that ended a run may live on, and what it holds with it


def _release_idle() -> None:
    if f"{__package__}.run.opening" in sys.modules:  # else no run was opened
        from .run.opening import release_idle

        release_idle()


def _run(words: list[str]) -> int:
    name = _named(words)
    if name is None:
        return _without_command(words)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # lets module:function find a file here; last, so that it hides no other module
    if not COMMANDS[name].words:
        quiet_libraries()
    result = parsed(name, words[len(name) :])()
    return result if isinstance(result, int) else 0


def parsed(name: tuple[str, ...], flags: list[str]) -> Callable[[], Any]:
    """The function call for a command's flags and configuration file, checked but not made.

    Raises ConfigError for what is wrong with them. For --help it prints that and raises SystemExit. Until the flags are
    read, no module is imported that needs torch.
    """
    from .settings.written.files import read_config
    from .sweeps.grid import check_flags, combinations, grid_of, jobs_of, take_sweep, with_values
    from .usage.flags import flags_of_function, flags_of_settings, summary
    from .usage.parsing import call_from, settings_from, with_defaults

    command, program = COMMANDS[name], " ".join(("lossbook", *name))
    if command.words:
        return _function(name)(flags)
    wants_help = any(flag in ("-h", "--help") for flag in flags)
    if command.config is None:
        function = _function(name)
        if wants_help:
            _help(name, flags_of_function(function), summary(function))
        return call_from(function, flags, program)
    model = _model(name)
    flags, words, jobs = take_sweep(flags)
    flags, path = _without_config(flags)
    values = {} if path is None else read_config(Path(path), model)
    if path is not None and (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)  # lets module:function find a file beside the configuration
    if wants_help:
        _help(name, with_defaults(flags_of_settings(model), values), f"{command.summary}.")
    if not words:
        return partial(_function(name), settings_from(model, flags, values, program))
    grid, number = grid_of(words, model), jobs_of(jobs)
    check_flags(flags, grid)
    base = settings_from(model, flags, with_values(values, next(combinations(grid))), program)
    return _sweep(name, base, grid, number)


def _sweep(name: tuple[str, ...], base: BaseModel, grid: dict[str, list[Any]], jobs: int) -> Callable[[], int]:
    """A run for each combination of settings, checked for what the settings alone show."""
    from .sweeps.grid import configured

    module = importlib.import_module(f".{COMMANDS[name].module}", __package__)
    if not hasattr(module, "check"):
        raise ConfigError(f"lossbook {' '.join(name)} has no --sweep: it is for `lossbook train`")
    runs = configured(base, grid)
    from .sweeps.sweep import run_sweep

    return partial(run_sweep, name, module.main, module.check, base, grid, runs, jobs)


def _function(name: tuple[str, ...]) -> Callable[..., Any]:
    """What a command calls; its module is imported now."""
    command = COMMANDS[name]
    return getattr(importlib.import_module(f".{command.module}", __package__), command.function)


def _help(name: tuple[str, ...], flags: list[Flag], text: str) -> NoReturn:
    from .usage.help import print_help

    print_help(name, COMMANDS[name], flags, text[:1].upper() + text[1:])
    raise SystemExit(0)


def _named(words: Sequence[str]) -> tuple[str, ...] | None:
    """The longest command that the first words name; None if they name none."""
    return max((name for name in COMMANDS if tuple(words[: len(name)]) == name), key=len, default=None)


def _takes_words(words: Sequence[str]) -> bool:
    """Whether the words are another program's, of which nothing is taken out."""
    name = _named(words)
    return name is not None and COMMANDS[name].words


def _without_config(flags: list[str]) -> tuple[list[str], str | None]:
    """The flags without `--config FILE` or `--config=FILE`, and FILE."""
    rest: list[str] = []
    path = None
    remaining = iter(flags)
    for flag in remaining:
        if flag == "--config":
            path = next(remaining, None)
            if path is None:
                raise ConfigError("--config needs a file after it: TOML, JSON or YAML")
        elif flag.startswith("--config="):
            path = flag.removeprefix("--config=")
        else:
            rest.append(flag)
    return rest, path


def _completion(words: list[str]) -> int:
    """Print the script that completes commands and flags in a shell."""
    from .usage.completion import SHELLS, script

    if len(words) != 1 or words[0] not in SHELLS:
        raise ConfigError(f"--completion takes the name of a shell: {' or '.join(SHELLS)}")
    print(script(words[0], {name: partial(_flags_of, name) for name in COMMANDS}), end="")
    return 0


def _flags_of(name: tuple[str, ...]) -> list[Flag]:
    from .usage.flags import flags_of_function, flags_of_settings

    command = COMMANDS[name]
    if command.words:
        return []
    return flags_of_function(_function(name)) if command.config is None else flags_of_settings(_model(name))


def _model(name: tuple[str, ...]) -> Any:
    """The settings of a command."""
    room, _, model = str(COMMANDS[name].config).partition(".")
    return getattr(importlib.import_module(f".settings.{room}", __package__), model)


def _without_command(words: list[str]) -> int:
    """Where the words name no command: the version, a script of completion, the commands that begin so, or the likeliest one."""
    if words == ["--version"]:
        from .. import __version__

        print(f"lossbook {__version__}")
        return 0
    if words[:1] == ["--completion"]:
        return _completion(words[1:])
    asked = tuple(word for word in words if word not in ("-h", "--help"))
    if any(name[: len(asked)] == asked for name in COMMANDS):
        print_overview(asked)
        return USAGE_ERROR if asked and asked == tuple(words) else 0
    typed, known = " ".join(asked[:2]), [" ".join(name) for name in COMMANDS]
    near = difflib.get_close_matches(typed, known, n=1) or difflib.get_close_matches(asked[0], known, n=1, cutoff=0.4)
    hint = f" Did you mean 'lossbook {near[0]}'?" if near else ""
    print(f"lossbook has no command {typed!r}.{hint} `lossbook --help` lists all commands.", file=sys.stderr)
    return USAGE_ERROR
