"""A block of code per loss that runs as it stands: the loss on a few numbers, with the value that it must give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lossbook.datums.errors import ShapeError
from lossbook.losses import Loss, LossCard
from lossbook.losses.cards.examples import STUDENT, TEACHER, example_batch, kind_of
from lossbook.losses.cards.sample_inputs import usable
from lossbook.losses.spec.vocabulary import STUDENT as OWN
from lossbook.losses.spec.vocabulary import VOCABULARY_OUTPUTS

#: What a required constant length is in the example.
NORM_LENGTH = 4
WIDTH = 100
#: The most characters of numbers in one line of their own.
WIDEST = 110


def example_block(card: LossCard) -> Iterator[str]:
    """The lines of the block, without its fences."""
    loss = usable(card.name, norm_length=NORM_LENGTH)
    assert isinstance(loss, Loss)
    given, value = _tried(loss)
    settings = f", norm_length={NORM_LENGTH}" if card.reduction == "seq-mean-token-sum-norm" else ""
    yield from ("import torch", "", "import lossbook as lb", "")
    yield f'loss = lb.get_loss("{card.name}"{settings})'
    yield "value, metrics = loss.on_tensors("
    for name, shown in given.items():
        yield from (f"    {remark}" for remark in _remark(name, card))
        line = f"    {name}={shown},"
        yield line if len(line) <= WIDTH else _wrapped(line)
    yield ")"
    yield "value.backward()"
    yield f"assert abs(value.item() - {_rounded(value)}) < 1e-3"


def _wrapped(line: str) -> str:
    """An argument that is too long for one line as the formatter lays it out."""
    before, _, rest = line.removesuffix("),").partition("torch.tensor(")
    numbers, comma, option = rest.partition(", requires_grad")
    if len(numbers) > WIDEST:  # a line for each datum
        rows = numbers[1:-1].replace("]], [[", "]],\n            [[")
        numbers = f"[\n            {rows},\n        ]"
    lines = [
        f"{before}torch.tensor(",
        f"        {numbers},",
        *([f"        requires_grad{option},"] if comma else []),
        "    ),",
    ]
    return "\n".join(lines)


def _rounded(value: float) -> str:
    return f"{value:.4f}".replace("-0.0000", "0.0000")


def _remark(name: str, card: LossCard) -> Iterator[str]:
    if name in ("logprobs", "values") and card.per == "pair":
        yield "# the chosen answer, then the rejected one"
    if name == "mask":
        yield "# 1 where a token counts"


def _tried(loss: Loss) -> tuple[dict[str, str], float]:
    """Arguments of `on_tensors` as code, and the value that they give."""
    kind = kind_of(loss)
    for count in (4, 6, 2):
        try:
            shown, tensors = _arguments(loss, kind, count)
            return shown, float(loss.on_tensors(**tensors)[0].detach())
        except ShapeError:  # a loss over triplets does not take 4 vectors
            continue
    raise AssertionError(f"{loss.name} takes neither 4, 6 nor 2 datums")


def _arguments(loss: Loss, kind: str, count: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    data, outputs = example_batch(loss, kind, count)
    tensors: dict[str, Tensor] = {}
    shown: dict[str, str] = {}
    for name, values in outputs.items():
        numbers = STUDENT if kind == "candidate tokens" and name == "logprobs" else [v.tolist() for v in values]
        whole = name in VOCABULARY_OUTPUTS
        shown[name], tensors[name] = (
            _distributions(values, name) if whole else _as_tensor(numbers, name, kind, grad=True)
        )
    if kind != "embeddings":
        weights = [datum.loss_fn_inputs["weights"].to_torch().tolist() for datum in data]
        shown["mask"], tensors["mask"] = _as_tensor([[int(w) for w in row] for row in weights], "mask", kind)
    for name in data[0].loss_fn_inputs:
        if name not in ("target_tokens", "weights"):
            numbers = [datum.loss_fn_inputs[name].to_torch().tolist() for datum in data]
            numbers = TEACHER if name == loss.spec.candidates else numbers
            shown[name], tensors[name] = _as_tensor(numbers, name, kind)
    return shown, tensors


def _distributions(values: list[Tensor], name: str) -> tuple[str, Tensor]:
    """[B, T, V] probabilities as code and as their logarithms; rows are padded with any distribution."""
    length = max(map(len, values))
    rows = [[*_short(one.detach().exp().tolist()), *[[0.4, 0.3, 0.3]] * (length - len(one))] for one in values]
    code, tensor = f"torch.tensor({rows}).log()", torch.tensor(rows).log()
    return (f"{code}.requires_grad_()", tensor.requires_grad_()) if name == OWN else (code, tensor)


def _as_tensor(numbers: Any, name: str, kind: str, *, grad: bool = False) -> tuple[str, Tensor]:
    """Numbers as code and as the tensor that it makes; rows are padded with zeros."""
    if kind == "candidate tokens" and (numbers is STUDENT or numbers is TEACHER):
        code, tensor = f"torch.tensor([{numbers}]).log()", torch.tensor([numbers]).log()
        return (f"{code}.requires_grad_()", tensor.requires_grad_()) if grad else (code, tensor)
    rows = [row if isinstance(row, list) else [row] for row in numbers]
    if all(len(row) == 1 for row in rows) and name != "embeddings":
        padded: Any = [row[0] for row in rows]
    else:
        length = max(map(len, rows))
        wide = rows[0][0]
        if grad and isinstance(wide, list) and all(column == wide[:1] * len(wide) for row in rows for column in row):
            return _alike((len(rows), length, len(wide)), _short(wide[0]))
        filler: Any = [0.0] * len(wide) if isinstance(wide, list) else 0 if name == "mask" else 0.0
        padded = [[*row, *[filler] * (length - len(row))] for row in rows]
    padded = _short(padded)
    tensor = torch.tensor(padded)
    return (
        f"torch.tensor({padded}{', requires_grad=True' if grad else ''})",
        tensor.requires_grad_() if grad else tensor,
    )


def _alike(shape: tuple[int, ...], number: float) -> tuple[str, Tensor]:
    """One number everywhere, as the model's own undecided tokens have it."""
    return f"torch.full({shape}, {number}, requires_grad=True)", torch.full(shape, number, requires_grad=True)


def _short(numbers: Any) -> Any:
    if isinstance(numbers, list):
        return [_short(one) for one in numbers]
    return numbers if isinstance(numbers, int) else float(f"{numbers:.4g}")
