"""Read a loss's docstring: the formula in its first paragraph, one line per tensor, and notes.

'''-r A, where r = exp(logprobs - sampling_logprobs).

logprobs, sampling_logprobs   [T]          nats
advantages                    [T]          unitless
returns                       [T] or [N]   unitless

When to use: One paragraph, if you like.
'''
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..spec.spec import GROUP_KEY, OUTPUT_NAMES

_NAMES = r"[A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*"
_SHAPE = r"\[[^\]]*\](?:\s+or\s+\[[^\]]*\])*"
_TENSOR = re.compile(rf"^(?P<names>{_NAMES})\s+(?P<shape>{_SHAPE})(?:\s+(?P<rest>\S.*))?$")
#: What stands between two tensors that share a line.
_BETWEEN_TENSORS = re.compile(rf"[;,]\s+(?={_NAMES}\s+{_SHAPE})")
#: Where the unit ends and the meaning begins: two spaces or punctuation, but not a comma in brackets, as in "[0, 1]".
_UNIT_END = re.compile(r"\s{2,}|[,;:]\s+(?![^\[(]*[\])])")
_WHEN = re.compile(r"(?:^|\n\n)When to use:\s+(?P<use>.*?)(?=\n\n|$)", re.DOTALL)
#: A longer first phrase is the meaning, not a unit.
_LONGEST_UNIT = 40


@dataclass(frozen=True)
class TensorLine:
    """A tensor's shape such as "[T]", unit such as "nats", and meaning; "" where the docstring does not say."""

    shape: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Docstring:
    """The parts of a loss's docstring.

    tensors: by name. returns: the values that it returns. when_to_use: "" if it does not say. notes: the rest.
    """

    formula: str
    tensors: dict[str, TensorLine]
    returns: TensorLine | None
    notes: str
    when_to_use: str = ""


def read_docstring(function: Callable[..., Any]) -> Docstring:
    """The parts of a function's docstring, empty without one. A tensor line begins with names of parameters."""
    parameters = inspect.signature(function).parameters
    known = {*parameters, *OUTPUT_NAMES, GROUP_KEY, "returns"}
    written = (inspect.getdoc(function) or "").splitlines()
    lines = [line for whole in written for line in _one_tensor_each(whole, known)]
    formula: list[str] = []
    while lines and lines[0].strip() and not _tensor_line(lines[0], known):
        formula.append(lines.pop(0).strip())
    tensors: dict[str, TensorLine] = {}
    returned: TensorLine | None = None
    notes: list[str] = []
    while lines:
        line = lines.pop(0)
        match = _tensor_line(line, known)
        if match is None:
            notes.append(line)
            continue
        rest = match["rest"] or ""
        while lines and lines[0].startswith("  ") and lines[0].strip():  # a continuation line
            rest = f"{rest} {lines.pop(0).strip()}"
        unit, meaning = _unit_and_meaning(rest)
        said = TensorLine(match["shape"], unit, meaning)
        # A value function also reads `returns`; its last line of that name describes the values it returns.
        if match["names"] == "returns" and ("returns" not in parameters or "returns" in tensors):
            returned = said
        else:
            tensors |= {name.strip(): said for name in match["names"].split(",")}
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(notes)).strip()
    when = _WHEN.search(text)
    use = " ".join(when["use"].split()) if when else ""
    return Docstring(" ".join(formula), tensors, returned, _WHEN.sub("", text).strip(), use)


def _one_tensor_each(line: str, known: set[str]) -> list[str]:
    """A line such as `logprobs [T] nats; returns [T] nats` as the lines that it is made of; any other line as it is."""
    parts = [part.strip() for part in _BETWEEN_TENSORS.split(line)]
    return parts if len(parts) > 1 and all(_tensor_line(part, known) for part in parts) else [line]


def _tensor_line(line: str, known: set[str]) -> re.Match[str] | None:
    match = _TENSOR.match(line)
    return match if match and known.issuperset(re.split(r"\s*,\s*", match["names"])) else None


def _unit_and_meaning(text: str) -> tuple[str, str]:
    parts = _UNIT_END.split(text.strip(), maxsplit=1)
    if len(parts[0]) > _LONGEST_UNIT:
        return "", text.strip()
    meaning = parts[1].strip() if len(parts) > 1 else ""
    # Whether an input is optional is read from the signature.
    return parts[0].rstrip(",;:. "), re.sub(r"^optional[,;:.]?\s*", "", meaning)
