"""Cross-tokenizer losses against TRL's `ULDLoss`, from logits to the loss, spans of several tokens included.

The student has 9 tokens, the teacher 11; 6 are shared under other numbers. Byte offsets make the first two tokens of the student
one span with the teacher's first, and two of the teacher's one span with the student's last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbook.losses.distillation import gold, uld

from .cases_distillation import _module
from .parity import Parity

STUDENT, TEACHER = 9, 11
#: The teacher's number of each of the student's tokens, -1 for none; then its others.
ORDER = [4, 0, -1, 7, 2, -1, 9, -1, 10, 1, 3, 5, 6, 8]
#: The bytes at which each token ends.
PLAIN = ([1, 2, 3, 4], [1, 2, 3, 4])
SPANS = ([1, 2, 3, 5], [2, 3, 4, 5])
TOLERANCE = 1e-6


class Tokenizer:
    """A vocabulary of letters."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def get_vocab(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}


def vocabularies() -> tuple[Tokenizer, Tokenizer]:
    """Names such that token v of the student is token ORDER[v] of the teacher."""
    names = {number: f"shared {number}" for number in ORDER[:STUDENT]}
    own = [names[number] if number >= 0 else f"own {i}" for i, number in enumerate(ORDER[:STUDENT])]
    return Tokenizer(own), Tokenizer([names.get(i, f"other {i}") for i in range(TEACHER)])


def crossed(hybrid: bool, settings: dict[str, float], spans: bool) -> tuple[float, float]:
    """Ours and ULDLoss of one sequence, whose every token is an answer's; the first position predicts the first."""
    config = _module("trl.experimental.gold.gold_config").GOLDConfig
    names = {
        "uld_crossentropy_weight": 0.0, "uld_distillation_weight": 1.0, "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False, "use_extended_uld": True, "uld_token_merge_strategy": "bayesian",
        "uld_student_temperature": settings.get("temperature", 1.0), "uld_use_hybrid_loss": hybrid,
        "uld_teacher_temperature": settings.get("temperature", 1.0), "beta": settings.get("beta", 0.5),
        "uld_hybrid_matched_weight": settings.get("matched_weight"),
        "uld_hybrid_unmatched_weight": 1 - settings["matched_weight"] if "matched_weight" in settings else None,
    }  # fmt: skip
    options = type("Options", (), names)()
    assert all(hasattr(config, name) for name in names)
    peer = _module("trl.experimental.gold.gold_trainer").ULDLoss(options, *vocabularies())
    generator = torch.Generator().manual_seed(3)
    logits = [2 * torch.randn(5, width, generator=generator).double() for width in (STUDENT, TEACHER)]
    tokens = [torch.randint(0, width, (5,), generator=generator) for width in (STUDENT, TEACHER)]
    ends = SPANS if spans else PLAIN
    labels = torch.tensor([[-100, 0, 0, 0, 0]])
    offsets = [torch.tensor([[[0, 0], *([0, end] for end in side)]]) for side in ends]

    def theirs(student: Tensor) -> Tensor:
        return peer(student[None], logits[1][None], labels, labels, tokens[0][None], tokens[1][None], *offsets)

    def ours(student: Tensor) -> Tensor:
        given, rest = [], []
        for own, target, side in zip((student, logits[1]), tokens, groups(*ends), strict=True):
            logprobs = (own / settings.get("temperature", 1.0)).log_softmax(-1)[:-1]
            chosen = logprobs.gather(1, target[1:, None])[:, 0]
            # TRL's strategy "bayesian" takes the distribution at a span's last token, and all before it as they are.
            given.append(own.log_softmax(-1)[[span[-1] for span in side]])
            rest.append(torch.stack([chosen[span[:-1]].sum() for span in side]))
        renumbered = torch.where(torch.tensor(ORDER) < 0, -torch.inf, given[1][:, ORDER])
        loss: Any = gold if hybrid else uld
        return loss(given[0], renumbered if hybrid else given[1], *rest, **settings)[0].mean()

    results = []
    for function in (ours, theirs):
        leaf = logits[0].clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    (value, slope), (other, other_slope) = results
    return float((value - other).abs()), float((slope - other_slope).abs().max())


def groups(own: list[int], other: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of each span, on either side, by the bytes at which both end one."""
    cuts = sorted(set(own) & set(other))
    sides = []
    for ends in (own, other):
        begins = [0, *cuts[:-1]]
        sides.append([[i for i, e in enumerate(ends) if a < e <= b] for a, b in zip(begins, cuts, strict=True)])
    return sides[0], sides[1]


CASES: list[Parity] = [
    Parity(
        "gold" if hybrid else "uld",
        f"gold_trainer.ULDLoss{' with uld_use_hybrid_loss' if hybrid else ''}{', spans of several tokens' if spans else ''}",
        "trl",
        lambda hybrid=hybrid, settings=settings, spans=spans: crossed(hybrid, settings, spans),
        settings,
        tolerance=TOLERANCE,
        note="one sequence, a mean over spans; a span's other tokens with their gradient, as theirs"
        + ("; theirs holds probabilities at 1e-8 at least" if hybrid else ""),
    )
    for hybrid, settings, spans in (
        (False, {}, False),
        (False, {"temperature": 2.0}, True),
        (True, {}, False),
        (True, {"beta": 0.0, "matched_weight": 0.25}, False),
        (True, {"beta": 1.0}, True),
        (True, {"beta": 0.3, "temperature": 2.0}, True),
    )
]
