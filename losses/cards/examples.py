"""The small fixed data on which two losses are compared, and the values and gradients of each at every position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...datums.types import Datum, ModelInput
from ..loss.loss import Loss, Mixture
from ..registry import get_loss
from ..spec.layers import LAYER_EMBEDDINGS
from ..spec.top import TOP_OUTPUTS
from ..spec.vocabulary import STUDENT as OWN
from ..spec.vocabulary import TOKEN_EMBEDDINGS, VOCABULARY_OUTPUTS
from . import sample_inputs
from .sample_inputs import OutputLists

#: Two sampled sequences of 3 and 4 tokens; the first token of each is a prompt token (weight 0). As a pair: chosen, rejected.
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
#: The kind of data of losses over whole distributions.
WHOLE = "whole distributions"
#: Enough vectors for three pairs or two triplets.
EMBEDDINGS = [[1, 0.2, 0], [0.7, 0.6, 0.2], [0.8, 0.5, 0.1], [0.8, 0.4, 0.2], [0.3, 0.1, 1], [0.6, 0.5, 0.6]]

#: What is read at one position, and both losses and gradients there; None where a loss has no value of its own.
Row = dict[str, float | str | None]
#: (reduction, the first loss's value, the second's).
Reduced = tuple[tuple[str, float, float], ...]


def example(first: Loss | Mixture, second: Loss | Mixture) -> tuple[list[Row], Reduced, str]:
    """(rows, reduced, note) of `Comparison`."""
    kinds = [kind_of(loss) for loss in (first, second)]
    if kinds[0] != kinds[1]:
        return [], (), f"{first.name} reads {kinds[0]}, {second.name} reads {kinds[1]}: there is no data for both"
    for count in (4, 6, 2, 3):
        try:
            evaluations = [_evaluated(loss, *example_batch(loss, kinds[0], count)) for loss in (first, second)]
        except Exception as error:  # a loss may raise anything for data it does not accept
            note = f"no numbers: {type(error).__name__}: {error}"
            if kinds[0] == "embeddings":
                continue
            return [], (), note
        return _table((first, second), evaluations)
    return [], (), "no numbers: neither 2, 3, 4 nor 6 vectors are a batch for both"


def kind_of(loss: Loss | Mixture) -> str:
    """The kind of data that a loss reads."""
    parts = [part for _, part in loss.parts]
    if any(part.spec.candidates is not None for part in parts):
        return "candidate tokens"
    if any(part.spec.reads_vocabulary for part in parts):
        return WHOLE
    if any("embeddings" in part.outputs for part in parts):
        return "embeddings"
    if any(TOKEN_EMBEDDINGS in part.outputs for part in parts):
        return "vectors of tokens"
    return "values" if any("values" in part.outputs for part in parts) else "tokens"


def example_batch(loss: Loss | Mixture, kind: str, count: int) -> tuple[list[Datum], OutputLists]:
    """Small data of a kind (`kind_of`) that the loss accepts, and model outputs for it; `count` embeddings."""
    parts = [part for _, part in loss.parts]
    wanted = {one.name: one for part in parts for one in sample_inputs.wanted_inputs(part)}
    # A flag is 1 for the first of two datums; for embeddings, for the datums of every other group.
    flagged = (
        {0} if kind != "embeddings" else {i for group in sample_inputs.groups(parts[0], count)[::2] for i in group}
    )
    data: list[Datum] = []
    given: OutputLists = {name: [] for name in loss.outputs}
    for i in range({"embeddings": count, "vectors of tokens": count, "candidate tokens": 1, WHOLE: 1}.get(kind, 2)):
        length = {"embeddings": 1, "candidate tokens": 3, WHOLE: 2}.get(kind) or len(TOKENS["weights"][i % 2])
        carried: dict[str, Any] = {}
        if kind != "embeddings":
            carried["target_tokens"] = [[0, 1]] * 3 if kind == "candidate tokens" else list(range(length))
            ones = kind in ("candidate tokens", WHOLE)
            carried["weights"] = [1.0] * length if ones else TOKENS["weights"][i % 2]
        for name, one in wanted.items():
            value = float(i in flagged) if one.kind == "flag" else sample_inputs.usual_value(one, i)
            if any(name == part.spec.candidates for part in parts):
                carried[name] = torch.tensor(TEACHER, dtype=torch.float32, device="cpu").log()
            elif one.per == "datum":
                carried[name] = value
            else:
                carried[name] = TOKENS[name][i][:length] if name in TOKENS else [value] * length
        data.append(Datum(ModelInput.from_ints(range(length)), carried))
        for name in loss.outputs:
            made = _output(name, kind, i, length) if name not in (*TOP_OUTPUTS, LAYER_EMBEDDINGS) else None
            if name == LAYER_EMBEDDINGS:  # each layer's vector is the next text's at the last layer
                rows = [EMBEDDINGS[(i + 1) % len(EMBEDDINGS)]] * max(len(part.layers) for part in parts)
                made = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
            given[name].append(_top(name, parts, length) if made is None else made)
    return data, given


def _top(name: str, parts: Sequence[Loss], length: int) -> Tensor:
    """As of an undecided model, at each position, as many as the largest part reads."""
    most = max((part for part in parts if part.spec.reads_top), key=lambda part: part.top_k)
    single = sample_inputs.outputs(most, 1)
    row = single[name][0] if name in single else torch.arange(most.top_k).reshape(1, -1)
    return row.repeat(length, 1).requires_grad_(row.is_floating_point())


def _output(name: str, kind: str, datum: int, length: int) -> Tensor:
    if name == "embeddings":
        values: Any = EMBEDDINGS[datum]
    elif name == TOKEN_EMBEDDINGS:
        values = [EMBEDDINGS[(datum + t) % len(EMBEDDINGS)] for t in range(length)]
    elif name in VOCABULARY_OUTPUTS:
        pair = torch.tensor((STUDENT if name == OWN else TEACHER), dtype=torch.float64)[torch.arange(length) % 3]
        return torch.cat([pair, 1 - pair.sum(1, keepdim=True)], 1).log().requires_grad_()
    elif kind == "candidate tokens" and name == "logprobs":
        return torch.tensor(STUDENT, dtype=torch.float64).log().requires_grad_()
    else:
        values = TOKENS[name][datum] if name in TOKENS else [sample_inputs.USUAL_OUTPUTS[name]] * length
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
    if not isinstance(loss, Loss) or loss.spec.is_batch_style:  # these have no values before reduction
        values, total = None, reduced
    else:
        length = {"norm_length": None} if "norm_length" in loss.spec.config.model_fields else {}
        summed = get_loss(loss, reduction="sum", **length)
        values, (total, _) = summed.values(data, outputs).detach(), summed.terms(data, outputs)
    slopes = torch.autograd.grad(total, outputs[main], allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(slopes, outputs[main], strict=True)]
    return _Evaluated(data, outputs, values, gradients, float(reduced.detach()), float(total.detach()))


def _table(losses: Sequence[Loss | Mixture], evaluations: Sequence[_Evaluated]) -> tuple[list[Row], Reduced, str]:
    rows: list[Row] = []
    columns = [_columns(loss, one) for loss, one in zip(losses, evaluations, strict=True)]
    for key in columns[0]:
        row: Row = dict(key)
        for own in columns:
            row.update(own[key]["reads"])
        for what in ("loss", "gradient"):
            for side, own in zip("AB", columns, strict=True):
                row[f"{what} {side}"] = own[key][what]
        rows.append(row)
    one, other = evaluations
    names = [f"{loss.reduction}" if isinstance(loss, Loss) else "each part's own" for loss in losses]
    label = names[0] if names[0] == names[1] else f"their own, {names[0]} and {names[1]}"
    reduced = (("sum", one.summed, other.summed), (label, one.reduced, other.reduced))
    return rows, reduced[1:] if label == "sum" else reduced, ""


def _columns(loss: Loss | Mixture, evaluated: _Evaluated) -> dict[tuple[tuple[str, str], ...], Mapping[str, Any]]:
    """What the loss reads at each position, its loss and its gradient there."""
    per = loss.spec.per if isinstance(loss, Loss) else "batch"
    values = iter([] if evaluated.values is None else evaluated.values.reshape(-1).tolist())
    main = loss.outputs[0]
    columns: dict[tuple[tuple[str, str], ...], Mapping[str, Any]] = {}
    for i, datum in enumerate(evaluated.data):
        output = evaluated.outputs[main][i].detach()
        for t in range(1 if main == "embeddings" else len(output)):
            weights = datum.loss_fn_inputs.get("weights")
            if weights is not None and not float(weights.to_numpy()[t]):
                continue
            first = not any(dict(key)["datum"] == str(i) for key in columns)
            starts = {"token": True, "datum": first, "pair": first and i % 2 == 0, "group": first and i == 0}.get(
                per, not columns
            )
            reads = {name: _shown(evaluated.outputs[name][i].detach(), t, name) for name in loss.outputs}
            for name, value in datum.loss_fn_inputs.items():
                if name not in ("target_tokens", "weights"):
                    reads[name] = _shown(value.to_torch(), t, name)
            key = (("datum", str(i)), ("token", "" if main == "embeddings" else str(t)))
            gradient = _shown(evaluated.gradients[i], t, main)
            columns[key] = {"reads": reads, "loss": next(values, None) if starts else None, "gradient": gradient}
    return columns


def _shown(values: Tensor, position: int, name: str) -> float | str:
    if values.ndim == 0:
        return float(values)
    if name == "embeddings" or values.ndim == 2:
        row = values if name == "embeddings" else values[position]
        return " ".join(f"{value:.3f}" for value in row.tolist())
    return float(values[position]) if len(values) > 1 else float(values[0])
