"""A loss and its gradient as functions of one quantity: a log-ratio, a margin, a logprob, a cosine or an error.

The numbers come from calling the loss, and autograd, on the smallest data that it accepts.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossCheckError
from ...datums.types import Datum
from ..loss.loss import Loss
from ..spec.inputs import GROUP_KEY
from ..spec.vocabulary import STUDENT, TOKEN_EMBEDDINGS
from . import sample_inputs
from .docstrings import read_docstring
from .jumps import Point, differs, with_jumps
from .sample_inputs import OutputLists, evenly

POINTS = 61


@dataclass(frozen=True)
class Line:
    """One line of a curve. x, loss and gradient have the same length; points where one is not finite are left out.

    jumps: the index of the first point after each jump of the loss or of its gradient; the point before has the same x but
    for rounding.
    """

    label: str
    x: tuple[float, ...]
    loss: tuple[float, ...]
    gradient: tuple[float, ...]
    jumps: tuple[int, ...] = ()

    def pieces(self, values: Sequence[float]) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
        """(xs, ys) of the loss or the gradient, cut where it jumps: pieces are not joined."""
        cuts = [0, *(i for i in self.jumps if differs(values[i - 1], values[i], values)), len(self.x)]
        return [(self.x[a:b], tuple(values[a:b])) for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Curve:
    """A loss and its derivative by `quantity`, one line for each variant of the data. fixed: the rest of the data.

    unit: the loss's, as its docstring says; "" where it does not.
    """

    quantity: str
    fixed: str
    lines: tuple[Line, ...]
    unit: str = ""

    @property
    def loss_title(self) -> str:
        """What the loss's axis shows, such as "loss (nats)"."""
        return f"loss ({self.unit})" if self.unit else "loss"

    @property
    def gradient_title(self) -> str:
        """What the gradient's axis shows, such as "d loss / d log-ratio (per nat)"."""
        variable = re.split(r" to the |: |,| of | \(", self.quantity.replace("student's ", ""))[0]
        per_nat = self.quantity.endswith("(nats)")
        unit = {"unitless": "", "reward squared": "reward"}.get(self.unit, self.unit)
        shown = f"{unit} per nat" if unit and per_nat else "per nat" if per_nat else unit
        by = f"({variable})" if " " in variable else variable
        return f"d loss / d {by}" + (f" ({shown})" if shown and self.unit else "")


@dataclass(frozen=True)
class _Sweep:
    """The quantity that moves and its values, the model's outputs at each value, and the inputs of each line by label."""

    quantity: str
    fixed: str
    points: Sequence[float]
    outputs: Callable[[Tensor, int], OutputLists]
    lines: Mapping[str, Mapping[str, Any]]


def curve_of(loss: Any, points: int = POINTS) -> Curve | None:
    """The curve of a loss with its settings; None for fn(data, logprobs_list), which names no quantity."""
    if not isinstance(loss, Loss) or loss.spec.is_batch_style:
        return None
    sweep = _sweep(loss, points)
    return sample_inputs.first_that_works(loss, lambda count: _curve(loss, sweep, count))


def _curve(loss: Loss, sweep: _Sweep, count: int) -> Curve | None:
    drawn: list[Line] = []
    for label, inputs in sweep.lines.items():
        data = sample_inputs.datums(loss, count, {key: v(count) if callable(v) else v for key, v in inputs.items()})

        def at(position: float, data: Sequence[Datum] = data) -> Point | None:
            x = torch.tensor(position, dtype=torch.float64, requires_grad=True)
            value, _ = loss(data, sweep.outputs(x, count))
            (slope,) = torch.autograd.grad(value, x, allow_unused=True)
            point = (position, float(value.detach()), 0.0 if slope is None else float(slope))
            return point if all(map(math.isfinite, point)) else None

        points = [point for position in sweep.points if (point := at(position)) is not None]
        if points:
            points, jumps = with_jumps(points, at)
            drawn.append(Line(label, *zip(*points, strict=True), jumps=jumps))
    if loss.spec.couples == "batch" and not any(slope for line in drawn for slope in line.gradient):
        raise LossCheckError(f"{loss.name} is flat on {count} datums")  # too few to compare: larger batches are tried
    batch = f", in a batch of {count}" if loss.spec.couples == "batch" and count > 1 else ""
    return Curve(sweep.quantity, f"{sweep.fixed}{batch}", tuple(drawn), _unit(loss)) if drawn else None


def _unit(loss: Loss) -> str:
    """The unit of one loss in a word or two, as the docstring says."""
    returned = read_docstring(loss.spec.function).returns
    return "" if returned is None else returned.unit.removeprefix("in units of the ").partition(" plus ")[0]


def _sweep(loss: Loss, points: int) -> _Sweep:
    spec = loss.spec
    reads = {one.name for one in sample_inputs.wanted_inputs(loss)}
    if "embeddings" in spec.outputs or TOKEN_EMBEDDINGS in spec.outputs:
        return _cosine(loss, points)
    if spec.candidates is not None:
        return _candidates(loss, points)
    if spec.reads_vocabulary:
        return _whole(loss, points)
    if spec.per == "pair":
        return _margin(loss, points, has_reference="ref_logprobs" in reads)
    if spec.couples == "group" and spec.outputs == ("values",):
        return _lead(loss, points)
    if "values" in spec.outputs:
        fixed = "one position of return 0"
        return _output(loss, "values", "value - return", evenly(-2, 2, points), fixed)
    if "sampling_logprobs" in reads or ("ref_logprobs" in reads and spec.couples == "token"):
        return _ratio(loss, points, "sampler" if "sampling_logprobs" in reads else "reference")
    if "ref_logprobs" in reads:
        fixed = "one response of one token"
        return _logprob(loss, "log-ratio to the reference (nats)", evenly(-20, 20, points), fixed, anchor=-20.0)
    if "logsumexp" in spec.outputs:
        fixed = f"one token of logprob {sample_inputs.USUAL_LOGPROB:g}"
        return _output(loss, "logsumexp", "logsumexp of the logits (nats)", evenly(-10, 10, points), fixed)
    if "logprobs" in spec.outputs:
        return _logprob(loss, "logprob (nats)", evenly(-6, -0.02, points), "one token", anchor=0.0)
    name = spec.outputs[0]
    return _output(loss, name, f"{name} (nats)", evenly(0.05, 6, points), "one token")


def _label_lines(loss: Loss) -> dict[str, dict[str, Any]]:
    """One line for each sign of the advantage, each value of a flag, or each of two old values."""
    reads = sample_inputs.wanted_inputs(loss)
    if any(one.name == "advantages" for one in reads):
        others = -1.0 if loss.spec.couples == "group" else 1.0  # a group is about datums that differ
        return {f"A = {sign:+g}": {"advantages": _first(sign, others * sign)} for sign in (1.0, -1.0)}
    if any(one.name == "old_values" for one in reads):
        return {"old value = 0": {"old_values": 0.0}, "old value = 1": {"old_values": 1.0}}
    for name in (one.name for one in reads if one.kind == "flag"):
        return {f"{name} = 1": {name: 1.0}, f"{name} = 0": {name: 0.0}}
    return {"": {}}


def _first(value: float, others: float) -> Callable[[int], list[float]]:
    """The first datum's value, and that of all others."""
    return lambda count: [value, *[others] * (count - 1)]


def _ratio(loss: Loss, points: int, anchor: str) -> _Sweep:
    base = sample_inputs.USUAL_LOGPROB
    lines = _label_lines(loss)
    names = [one.name for one in sample_inputs.wanted_inputs(loss)]
    if lines == {"": {}} and "teacher_logprobs" in names:
        lines = {f"teacher {d:+g} nat": {"teacher_logprobs": base + d} for d in (1.0, -1.0)}
    beside = ", beside a response of the other sign" if loss.spec.couples == "group" else ""
    fixed = f"one token, of logprob {base:g} under the {anchor}{beside}"
    return _logprob(loss, f"log-ratio to the {anchor} (nats)", evenly(-1.5, 1.45, points), fixed, base, lines)


def _logprob(
    loss: Loss,
    quantity: str,
    points: Sequence[float],
    fixed: str,
    anchor: float,
    lines: Mapping[str, Mapping[str, Any]] | None = None,
) -> _Sweep:
    """The first datum's logprob moves from `anchor`; those of other policies and other datums stay there."""

    def outputs(x: Tensor, count: int) -> OutputLists:
        given = sample_inputs.outputs(loss, count)
        rest = torch.tensor([anchor or sample_inputs.USUAL_LOGPROB], dtype=torch.float64)
        return {**given, "logprobs": [(x + anchor).reshape(1), *[rest] * (count - 1)]}

    logprob_inputs = {one.name: anchor for one in sample_inputs.wanted_inputs(loss) if one.kind == "logprob"}
    fixed_inputs = logprob_inputs if anchor else {}
    chosen = _label_lines(loss) if lines is None else lines
    return _Sweep(quantity, fixed, points, outputs, {label: {**fixed_inputs, **own} for label, own in chosen.items()})


def _margin(loss: Loss, points: int, *, has_reference: bool) -> _Sweep:
    """The two logprobs (or values) of a pair move apart from a common start."""
    reads_values = "values" in loss.outputs
    name = "values" if reads_values else "logprobs"
    reach = 4.0 if reads_values else 20.0 if has_reference else 4.0
    start = 0.0 if reads_values else -reach / 2
    others = {one.name: start for one in sample_inputs.wanted_inputs(loss) if one.kind == "logprob"}

    def outputs(x: Tensor, count: int) -> OutputLists:
        pair = [(start + 0.5 * x).reshape(1), (start - 0.5 * x).reshape(1)]
        rest = [torch.tensor([start], dtype=torch.float64)] * (count - 2)
        return {**sample_inputs.outputs(loss, count), name: [*pair, *rest]}

    quantity = "margin: chosen - rejected" + ("" if reads_values else ", over the reference" if has_reference else "")
    fixed = f"one pair of one token each, around {name[:-1]} {start:g}"
    # Just inside the ends, because log(1 - p) is infinite at logprob 0.
    margins = evenly(-reach * 0.99, reach * 0.99, points)
    return _Sweep(f"{quantity} (nats)" if not reads_values else quantity, fixed, margins, outputs, {"": others})


def _lead(loss: Loss, points: int) -> _Sweep:
    """The scores of a relevant candidate and another of its group move apart from 0."""

    def outputs(x: Tensor, count: int) -> OutputLists:
        rest = [torch.zeros(1, dtype=torch.float64, device="cpu")] * (count - 2)
        return {"values": [(0.5 * x).reshape(1), (-0.5 * x).reshape(1), *rest]}

    def first(count: int) -> list[float]:
        return [1.0, *[0.0] * (count - 1)]

    inputs = {one.name: first for one in sample_inputs.wanted_inputs(loss) if one.name != GROUP_KEY}
    fixed = "one group of two candidates, around score 0"
    return _Sweep("score: relevant - other", fixed, evenly(-4, 4, points), outputs, {"": inputs})


def _candidates(loss: Loss, points: int) -> _Sweep:
    def outputs(x: Tensor, count: int) -> OutputLists:
        student = torch.stack([x.log(), torch.log1p(-x)]).reshape(1, 2)
        return {**sample_inputs.outputs(loss, count), "logprobs": [student] * count}

    first, second = sample_inputs.USUAL_CANDIDATES
    fixed = f"one position with two candidates, of probability {first:g} and {second:g} under the teacher"
    return _Sweep("student's probability of the first", fixed, evenly(0.02, 0.98, points), outputs, _label_lines(loss))


def _whole(loss: Loss, points: int) -> _Sweep:
    def outputs(x: Tensor, count: int) -> OutputLists:
        student = torch.stack([x.log(), torch.log1p(-x)]).reshape(1, 2)
        return {**sample_inputs.outputs(loss, count), STUDENT: [student] * count}

    first, second = sample_inputs.USUAL_CANDIDATES
    fixed = f"one position, a vocabulary of two tokens, of probability {first:g} and {second:g} under the teacher"
    return _Sweep("student's probability of the first", fixed, evenly(0.02, 0.98, points), outputs, _label_lines(loss))


def _output(loss: Loss, name: str, quantity: str, points: Sequence[float], fixed: str) -> _Sweep:
    """The first datum's output `name` moves."""

    def outputs(x: Tensor, count: int) -> OutputLists:
        given = sample_inputs.outputs(loss, count)
        return {**given, name: [x.reshape(1), *given[name][1:]]}

    return _Sweep(quantity, fixed, points, outputs, _label_lines(loss))


def _cosine(loss: Loss, points: int) -> _Sweep:
    """The first datum's vector turns towards its partner's; all others are at a right angle to both.

    For losses that compare groups, a flag is 1 for the first group and 0 for the others, or the reverse.
    """

    def partner(count: int) -> int:
        return next((i for i in sample_inputs.groups(loss, count)[0] if i != 0), 0)

    def flags(first: float) -> Callable[[int], list[float]]:
        return lambda count: [first if i in sample_inputs.groups(loss, count)[0] else 1 - first for i in range(count)]

    def outputs(x: Tensor, count: int) -> OutputLists:
        first, _, third = torch.eye(sample_inputs.EMBEDDING_WIDTH, dtype=torch.float64)
        vectors = [third] * count
        vectors[partner(count)] = first
        vectors[0] = torch.stack([x, (1 - x * x).sqrt(), torch.zeros_like(x)])
        if TOKEN_EMBEDDINGS in loss.outputs:  # of one token each
            return {TOKEN_EMBEDDINGS: [vector.unsqueeze(0) for vector in vectors]}
        return {**sample_inputs.outputs(loss, count), "embeddings": vectors}

    lines = {label: {key: flags(value) for key, value in own.items()} for label, own in _label_lines(loss).items()}
    fixed = "every other vector at a right angle"
    return _Sweep("cosine of the first datum and its partner", fixed, evenly(-0.98, 0.98, points), outputs, lines)
