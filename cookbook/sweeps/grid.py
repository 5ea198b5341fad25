"""The words of `--sweep` as a grid of settings, and the settings of each run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from ...datums.errors import ConfigError, did_you_mean
from ..settings.written.files import value_of
from ..settings.written.needs import mistake

#: Settings that say where and how a sweep runs, the same for all of its runs.
FIXED = ("out", "resume", "overwrite", "changed_data", "run_name")
#: Longer names of folders end in a hash.
LONGEST = 100
_OPEN, _CLOSE = "[{", "]}"


@dataclass(frozen=True)
class Combination:
    """The settings of one run of a sweep: swept values by name, such as `loss_config.beta`, and its folder's name."""

    name: str
    values: Mapping[str, Any]
    config: Any


def take_sweep(flags: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """The flags without `--sweep NAME=VALUES ...` and `--jobs N`, the words of the one, and the N of the other.

    Raises ConfigError for one without the other, or without what it needs.
    """
    rest: list[str] = []
    words: list[str] = []
    jobs: str | None = None
    is_swept, into = False, rest
    for flag in flags:
        name, equals, value = flag.partition("=")
        if name in ("--sweep", "--jobs"):
            is_swept |= name == "--sweep"
            into = words if name == "--sweep" else rest
            jobs = (value if equals else "") if name == "--jobs" else jobs
            words += [value] if name == "--sweep" and equals else []
        elif jobs == "" and not flag.startswith("--"):
            jobs = flag
        else:
            into = rest if flag.startswith("--") else into
            into.append(flag)
    if is_swept and not words:
        raise ConfigError("--sweep needs settings and values: --sweep loss=dpo,simpo seed=0,1,2")
    if jobs is not None and not is_swept:
        raise ConfigError("--jobs is for --sweep")
    return rest, words, jobs


def jobs_of(text: str | None) -> int:
    """How many runs at once. Raises ConfigError for what is no number of at least 1."""
    if text is not None and not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigError(f"--jobs must be at least 1, not {text!r}")
    return int(text or 1)


def grid_of(words: Sequence[str], model: type[BaseModel]) -> dict[str, list[Any]]:
    """The values to try by setting, converted to its type: {"loss": ["dpo", "simpo"], "loss_config.beta": [0.1, 0.5]}.

    Raises ConfigError for a name that is no setting, for a value that does not fit it, and for one that is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals:
            raise ConfigError(f"--sweep {word}: write NAME=VALUE,VALUE,..., such as seed=0,1,2")
        if name in grid:
            raise ConfigError(f"--sweep gives {name} twice: write its values in one list")
        _check_name(name, model)
        values = [_typed(name, value, model) for value in _split(text)]
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            raise ConfigError(f"--sweep {word}: a value is given twice, and its run would be too")
        grid[name] = values
    return grid


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values; those of the last setting change first."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def with_values(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a combination's values, a dotted one within its mapping."""
    new = dict(settings)
    for name, value in values.items():
        field, dot, key = name.partition(".")
        new[field] = {**(new.get(field) or {}), key: value} if dot else value
    return new


def configured(base: BaseModel, grid: Mapping[str, Sequence[Any]]) -> list[Combination]:
    """The settings of every run, each below the folder of `base`. Raises ConfigError naming the combination that is refused."""
    settings = {name: getattr(base, name) for name in type(base).model_fields}
    combined: list[Combination] = []
    for values in combinations(grid):
        name = _folder(values, {each.name for each in combined})
        own = with_values(settings, values)
        own["out"] = settings["out"] / name
        if own.get("run_name"):
            own["run_name"] = f"{own['run_name']} {name}"
        if "references" in own and own["references"] is None:
            own["references"] = settings["out"] / "references"  # which depend on the model and the rows alone
        try:
            config = type(base).model_validate(own)
        except ValidationError as error:
            raise ConfigError(f"{named(values)}: {mistake(error, type(base).model_fields)}") from None
        combined.append(Combination(name, values, config))
    return combined


def named(values: Mapping[str, Any]) -> str:
    """A combination in words: loss=dpo seed=0."""
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def check_flags(flags: Sequence[str], grid: Mapping[str, Any]) -> None:
    """Raise ConfigError for a flag that gives a setting that is swept."""
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if flag.startswith("--") and name in grid:
            raise ConfigError(f"{flag} and --sweep both give {name}: leave one of them out")


def _check_name(name: str, model: type[BaseModel]) -> None:
    field, dot, key = name.partition(".")
    known = [each for each in model.model_fields if each not in FIXED]
    if field in FIXED:
        raise ConfigError(f"--sweep {field}: it is the same for all runs of a sweep; give it as a flag")
    if field not in known:
        raise ConfigError(f"--sweep {field}: no setting is called so.{did_you_mean(field, known)}")
    if dot and (get_origin(model.model_fields[field].annotation) is not dict or not key):
        raise ConfigError(f"--sweep {name}: {field} has no parts of its own; write {field}=...")


def _typed(name: str, text: str, model: type[BaseModel]) -> Any:
    """A value as its setting has it: a part of a mapping as it reads, else what the setting's type takes."""
    if not text:
        raise ConfigError(f"--sweep {name}: a value is missing")
    read = _read(text)
    if "." in name:
        if isinstance(read, list | dict) or read is None:
            raise ConfigError(f"--sweep {name}: {text} is no number, text, true or false")
        return read
    reasons: list[ValueError] = []
    for candidate in (read, text, [text]):  # as it reads, as a text, as the one member of a list
        try:
            return value_of(name, candidate, model.model_fields[name])
        except ValueError as error:
            reasons.append(error)
    raise ConfigError(f"--sweep: {reasons[0]}")


def _read(text: str) -> Any:
    """A number, true, false, null, a JSON list or object; else the text."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null", "none": "null"}.get(text, text))
    except ValueError:
        return text


def _split(text: str) -> list[str]:
    """The values between commas, but for commas in JSON's brackets and quotes."""
    values, depth, is_quoted = [""], 0, False
    for character in text:
        is_quoted ^= character == '"'
        depth += 0 if is_quoted else (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth <= 0 and not is_quoted:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _folder(values: Mapping[str, Any], taken: set[str]) -> str:
    """A folder's name: loss=dpo,seed=0, with - for what paths and shells take amiss."""
    whole = ",".join(f"{name}={_text(value)}" for name, value in values.items())
    name = re.sub(r"[^A-Za-z0-9._+=,-]+", "-", whole)
    if len(name) > LONGEST or name in taken:
        name = f"{name[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
