"""The small fixed data on which two losses are compared, and what each gives on it, place by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...datums.types import Datum, ModelInput
from ..loss.loss import Loss, Mixture
from ..registry import get_loss
from . import sample_inputs as minimal
from .sample_inputs import OutputLists

#: Two sampled sequences of 3 and 4 tokens, the first token of each a prompt's (weight 0). A pair: chosen, rejected.
TOKENS: dict[str, list[list[float]]] = {
    "weights": [[0, 1, 1], [0, 1, 1, 1]],
    "logprobs": [[-0.5, -1.0, -2.0], [-0.2, -3.0, -0.1, -1.2]],
    "sampling_logprobs": [[-0.7, -1.1, -1.5], [-0.9, -2.0, -0.4, -1.0]],
    "ref_logprobs": [[-0.6, -1.2, -1.8], [-0.3, -2.5, -0.2, -1.1]],
    "teacher_logprobs": [[-0.4, -0.8, -2.2], [-0.5, -2.8, -0.3, -0.9]],
    "advantages": [[1.0, 1.0, 1.0], [-0.5, -0.5, -0.5, -0.5]],
    "values": [[0.2, 0.5, -0.4], [0.1, 0.3, 0.8, -0.6]],
    "old_values": [[0.1, 0.2, -0.1], [0.0, 0.4, 0.3, -0.2]],
    "returns": [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]],
    "entropy": [[1.5, 2.0, 0.5], [0.1, 3.0, 1.0, 2.5]],
}
#: Probabilities of two candidates at three positions, under the student and under the teacher.
STUDENT = [[0.5, 0.3], [0.2, 0.2], [0.6, 0.1]]
TEACHER = [[0.7, 0.2], [0.1, 0.6], [0.5, 0.3]]
#: Enough vectors for three pairs or two triplets.
EMBEDDINGS = [[1, 0.2, 0], [0.7, 0.6, 0.2], [0.8, 0.5, 0.1], [0.8, 0.4, 0.2], [0.3, 0.1, 1], [0.6, 0.5, 0.6]]

#: What is read at one place, and both losses and gradients there; None where a loss has no value of its own.
Row = dict[str, float | str | None]
#: (reduction, the first loss's value, the second's).
Reduced = tuple[tuple[str, float, float], ...]


def example(first: Loss | Mixture, second: Loss | Mixture) -> tuple[list[Row], Reduced, str]:
    """(rows, reduced, note) of `Comparison`."""
    kinds = [kind_of(loss) for loss in (first, second)]
    if kinds[0] != kinds[1]:
        return [], (), f"{first.name} is about {kinds[0]}, {second.name} about {kinds[1]}: no data serves both"
    for count in (4, 6, 2, 3):
        try:
            found = [_evaluated(loss, *example_batch(loss, kinds[0], count)) for loss in (first, second)]
        except Exception as error:  # a loss may refuse data in any way it likes
            note = f"no numbers: {type(error).__name__}: {error}"
            if kinds[0] == "embeddings":
                continue
            return [], (), note
        return _table((first, second), found)
    return [], (), "no numbers: no batch of 2, 3, 4 or 6 vectors serves both"


def kind_of(loss: Loss | Mixture) -> str:
    """What kind of data a loss is about."""
    parts = [part for _, part in loss.parts]
    if any(part.spec.candidates is not None for part in parts):
        return "candidate tokens"
    if any("embeddings" in part.outputs for part in parts):
        return "embeddings"
    return "values" if any("values" in part.outputs for part in parts) else "tokens"


def example_batch(loss: Loss | Mixture, kind: str, count: int) -> tuple[list[Datum], OutputLists]:
    """Small data of a kind (`kind_of`) that the loss takes, and model outputs for it; `count` embeddings."""
    parts = [part for _, part in loss.parts]
    wanted = {one.name: one for part in parts for one in minimal.wanted_inputs(part)}
    # The first of two; of more, the datums of every other group.
    flagged = {0} if kind != "embeddings" else {i for group in minimal.partners(parts[0], count)[::2] for i in group}
    data: list[Datum] = []
    given: OutputLists = {name: [] for name in loss.outputs}
    for i in range({"embeddings": count, "candidate tokens": 1}.get(kind, 2)):
        length = {"embeddings": 1, "candidate tokens": 3}.get(kind) or len(TOKENS["weights"][i])
        carried: dict[str, Any] = {}
        if kind != "embeddings":
            carried["target_tokens"] = [[0, 1]] * 3 if kind == "candidate tokens" else list(range(length))
            carried["weights"] = [1.0] * 3 if kind == "candidate tokens" else TOKENS["weights"][i]
        for name, one in wanted.items():
            plain = float(i in flagged) if minimal.is_flag(one) else minimal.usual_value(one)
            if any(name == part.spec.candidates for part in parts):
                carried[name] = torch.tensor(TEACHER).log()
            elif one.per == "datum":
                carried[name] = plain
            else:
                carried[name] = TOKENS[name][i][:length] if name in TOKENS else [plain] * length
        data.append(Datum(ModelInput.from_ints(range(length)), carried))
        for name in loss.outputs:
            given[name].append(_output(name, kind, i, length))
    return data, given


def _output(name: str, kind: str, datum: int, length: int) -> Tensor:
    if name == "embeddings":
        values: Any = EMBEDDINGS[datum]
    elif kind == "candidate tokens" and name == "logprobs":
        return torch.tensor(STUDENT, dtype=torch.float64).log().requires_grad_()
    else:
        values = TOKENS[name][datum] if name in TOKENS else [minimal.USUAL_OUTPUTS[name]] * length
    return torch.tensor(values[:length] if name != "embeddings" else values, dtype=torch.float64, requires_grad=True)


@dataclass(frozen=True)
class _Evaluated:
    data: list[Datum]
    outputs: OutputLists
    values: Tensor | None
    gradients: list[Tensor]
    reduced: float
    summed: float


def _evaluated(loss: Loss | Mixture, data: list[Datum], outputs: OutputLists) -> _Evaluated:
    main = loss.outputs[0]
    reduced, _ = loss(data, outputs)
    if not isinstance(loss, Loss) or loss.spec.is_batch_style:  # they have no sum of their own
        values, total = None, reduced
    else:
        length = {"norm_length": None} if "norm_length" in loss.spec.config.model_fields else {}
        plain = get_loss(loss, reduction="sum", **length)
        values, (total, _) = plain.values(data, outputs).detach(), plain.terms(data, outputs)
    found = torch.autograd.grad(total, outputs[main], allow_unused=True)
    slopes = [torch.zeros_like(x) if g is None else g for g, x in zip(found, outputs[main], strict=True)]
    return _Evaluated(data, outputs, values, slopes, float(reduced.detach()), float(total.detach()))


def _table(losses: Sequence[Loss | Mixture], found: Sequence[_Evaluated]) -> tuple[list[Row], Reduced, str]:
    rows: list[Row] = []
    columns = [_columns(loss, one) for loss, one in zip(losses, found, strict=True)]
    for key in columns[0]:
        row: Row = dict(key)
        for own in columns:
            row.update(own[key]["reads"])
        for what in ("loss", "gradient"):
            for side, own in zip("AB", columns, strict=True):
                row[f"{what} {side}"] = own[key][what]
        rows.append(row)
    one, other = found
    names = [f"{loss.reduction}" if isinstance(loss, Loss) else "each part's own" for loss in losses]
    label = names[0] if names[0] == names[1] else f"their own, {names[0]} and {names[1]}"
    reduced = (("sum", one.summed, other.summed), (label, one.reduced, other.reduced))
    return rows, reduced[1:] if label == "sum" else reduced, ""


def _columns(loss: Loss | Mixture, found: _Evaluated) -> dict[tuple[tuple[str, str], ...], Mapping[str, Any]]:
    """By place: what the loss reads there, its loss and its gradient."""
    per = loss.spec.per if isinstance(loss, Loss) else "batch"
    values = iter([] if found.values is None else found.values.reshape(-1).tolist())
    main = loss.outputs[0]
    columns: dict[tuple[tuple[str, str], ...], Mapping[str, Any]] = {}
    for i, datum in enumerate(found.data):
        output = found.outputs[main][i].detach()
        for t in range(1 if main == "embeddings" else len(output)):
            weights = datum.loss_fn_inputs.get("weights")
            if weights is not None and not float(weights.to_numpy()[t]):
                continue
            first = not any(dict(key)["datum"] == str(i) for key in columns)
            starts = {"token": True, "datum": first, "pair": first and i % 2 == 0}.get(per, not columns)
            reads = {name: _shown(found.outputs[name][i].detach(), t, name) for name in loss.outputs}
            for name, value in datum.loss_fn_inputs.items():
                if name not in ("target_tokens", "weights"):
                    reads[name] = _shown(value.to_torch(), t, name)
            key = (("datum", str(i)), ("token", "" if main == "embeddings" else str(t)))
            gradient = _shown(found.gradients[i], t, main)
            columns[key] = {"reads": reads, "loss": next(values, None) if starts else None, "gradient": gradient}
    return columns


def _shown(values: Tensor, position: int, name: str) -> float | str:
    if values.ndim == 0:
        return float(values)
    if name == "embeddings" or values.ndim == 2:
        row = values if name == "embeddings" else values[position]
        return " ".join(f"{value:.3f}" for value in row.tolist())
    return float(values[position]) if len(values) > 1 else float(values[0])
