"""Distillation over whole distributions against TRL's and Liger's own code, from hidden states and heads where these take them.

Gradients are those of the student's hidden states and head. TRL's chunked function and Liger take log-softmax in float32, so these
agree to 1e-6 and no further.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossbook import get_loss

from .padded import relative
from .parity import Parity

POSITIONS, HIDDEN, TEACHER, VOCABULARY = 7, 8, 5, 13
#: A mask with holes; beside it the labels that mark the same.
MASK = torch.tensor([True, False, True, True, False, True, True])


def _module(name: str) -> Any:
    """A module of a peer, whatever it warns of while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _states(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and head of the student, then the teacher's, of another width."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((POSITIONS, HIDDEN), (VOCABULARY, HIDDEN), (POSITIONS, TEACHER), (VOCABULARY, TEACHER))
    hidden, head, other, other_head = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    return hidden.requires_grad_(), head.requires_grad_(), other, other_head


def compared(
    name: str, settings: dict[str, Any], theirs: Callable[..., Tensor], dtype: torch.dtype
) -> tuple[float, float]:
    """(of the value, of the gradient): the largest differences, relative to the largest number."""
    hidden, head, other, other_head = _states(dtype)
    labels = torch.zeros(POSITIONS, dtype=torch.int64).masked_fill(~MASK, -100)
    value, _ = get_loss(name, reduction="token-mean", **settings).on_hidden(
        hidden, head, labels, mask=MASK, teacher_hidden=other, teacher_head=other_head
    )
    peer = theirs(hidden, head, other, other_head)
    slopes = [torch.autograd.grad(one, (hidden, head)) for one in (value, peer)]
    return relative(value.detach(), peer.detach()), max(relative(*pair) for pair in zip(*slopes, strict=True))


def trl_dense(name: str, settings: dict[str, Any], beta: float, temperature: float) -> tuple[float, float]:
    """The GKD trainer's loss on whole logits."""
    trainer = _module("trl.experimental.gkd.gkd_trainer").GKDTrainer

    def theirs(hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
        student, teacher = (hidden @ head.T)[None], (other @ other_head.T)[None]
        labels = torch.zeros(1, POSITIONS, dtype=torch.int64).masked_fill(~MASK, -100)
        return trainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, temperature=temperature)

    return compared(name, settings, theirs, torch.float64)


def trl_chunked(name: str, settings: dict[str, Any], beta: float, temperature: float) -> tuple[float, float]:
    """The distillation trainer's loss on hidden states."""
    chunked = _module("trl.trainer.distillation_trainer")._chunked_divergence_loss

    def theirs(hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
        states = (hidden[None], other[None], head, other_head)
        return chunked(*states, MASK[None].long(), beta, temperature=temperature)[0]

    return compared(name, settings, theirs, torch.float32)


def liger(name: str, settings: dict[str, Any], beta: float, temperature: float) -> tuple[float, float]:
    """Liger's chunked JSD without its cross-entropy, in chunks of three positions."""
    module = _module("liger_kernel.chunked_loss.jsd_loss")
    options = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "compiled": False, "chunk_size": 3}
    loss = module.LigerFusedLinearJSDLoss(beta=beta, temperature=temperature, **options)

    def theirs(hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
        labels = torch.zeros(POSITIONS, dtype=torch.int64).masked_fill(~MASK, -100)
        return loss(hidden, head, other, other_head, labels)

    return compared(name, settings, theirs, torch.float32)


PEERS: tuple[tuple[str, str, Any, float, str], ...] = (
    ("trl.experimental.gkd.GKDTrainer.generalized_jsd_loss", "trl", trl_dense, 1e-9, "from logits of both, in float64"),
    (
        "trl.trainer.distillation_trainer._chunked_divergence_loss",
        "trl",
        trl_chunked,
        1e-5,
        "from hidden states, in float32; relative",
    ),
    (
        "liger_kernel.chunked_loss.LigerFusedLinearJSDLoss",
        "liger-kernel",
        liger,
        1e-5,
        "weight_hard_loss 0, weight_soft_loss 1, compiled=False; relative, in float32",
    ),
)
CASES: list[Parity] = [
    Parity(
        name,
        peer,
        package,
        lambda run=run, name=name, settings=settings, beta=beta, temperature=temperature: run(
            name, settings, beta, temperature
        ),
        settings,
        tolerance=tolerance,
        note=f"beta {beta:g}; {note}",
    )
    for peer, package, run, tolerance, note in PEERS
    for name, beta, temperature, settings in (
        ("full_forward_kl", 0.0, 1.0, {}),
        ("full_reverse_kl", 1.0, 2.0, {"temperature": 2.0}),
        ("full_jsd", 0.3, 1.0, {"beta": 0.3}),
        ("full_gkd", 0.5, 0.9, {"beta": 0.5, "temperature": 0.9}),
    )
]


def trl_student_topk(settings: dict[str, Any], alpha: float, add_tail: bool) -> tuple[float, float]:
    """The self-distillation trainer's divergence over the student's top K, meant over the tokens of the mask."""
    function = _module("trl.experimental.sdpo.loss_utils").compute_topk_self_distillation_loss
    options = {
        "distillation_topk": settings["likeliest"],
        "distillation_alpha": alpha,
        "distillation_add_tail": add_tail,
    }

    def theirs(hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
        return function(hidden @ head.T, other @ other_head.T, **options)[MASK].mean()

    return compared("student_topk_gkd", settings, theirs, torch.float64)


CASES += [
    Parity(
        "student_topk_gkd",
        "trl.experimental.sdpo.loss_utils.compute_topk_self_distillation_loss",
        "trl",
        lambda settings=settings, alpha=alpha, add_tail=add_tail: trl_student_topk(settings, alpha, add_tail),
        settings,
        note=f"alpha {alpha:g}, add_tail {add_tail}",
    )
    for settings, alpha, add_tail in (
        ({"likeliest": 5, "beta": 1.0}, 1.0, True),
        ({"likeliest": 5, "beta": 0.0, "tail": "renormalise"}, 0.0, False),
        ({"likeliest": 4, "beta": 0.3}, 0.3, True),
    )
]
