"""Supervised, value and auxiliary losses against torch, transformers and TRL, through logits in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lossbook import Datum, ModelInput, get_loss

from .parity import Parity

SEQUENCES, POSITIONS, VOCABULARY = 3, 5, 11
Batch = dict[str, Tensor]


def batch() -> Batch:
    """Logits [B, N, V], targets [B, N] and a mask [B, N]; position i predicts target i. The last sequence is short."""
    chance = torch.Generator().manual_seed(0)
    mask = torch.rand(SEQUENCES, POSITIONS, generator=chance) < 0.7
    mask[:, 0], mask[-1, 2:] = True, False
    return {
        "logits": 3 * torch.randn(SEQUENCES, POSITIONS, VOCABULARY, generator=chance, dtype=torch.float64),
        "targets": torch.randint(0, VOCABULARY, (SEQUENCES, POSITIONS), generator=chance),
        "mask": mask,
    }


def outputs_of(logits: Tensor, targets: Tensor) -> dict[str, list[Tensor]]:
    """What a model with these logits says, one tensor a sequence."""
    everything = logits.log_softmax(-1)
    by_name = {
        "logprobs": everything.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        "mean_logprobs": everything.mean(-1),
        "logsumexp": logits.logsumexp(-1),
        "entropy": -(everything.exp() * everything).sum(-1),
    }
    return {name: list(values) for name, values in by_name.items()}


def differences(loss: str, settings: dict[str, Any], peer: Callable[[Tensor, Batch], Tensor]) -> tuple[float, float]:
    """The largest differences of value and of gradient with respect to the logits."""
    drawn = batch()
    logits = drawn["logits"].requires_grad_()
    data = [
        Datum(ModelInput.from_ints([0] * POSITIONS), {"target_tokens": target, "weights": mask.float()})
        for target, mask in zip(drawn["targets"], drawn["mask"], strict=True)
    ]
    ours, _ = get_loss(loss, **settings)(data, outputs_of(logits, drawn["targets"]))
    theirs = peer(logits, drawn)
    slopes = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, theirs)]
    return float((ours - theirs).detach().abs()), float((slopes[0] - slopes[1]).abs().max())


def labels_of(drawn: Batch) -> Tensor:
    """[B, N] targets, -100 where masked."""
    return drawn["targets"].masked_fill(~drawn["mask"], -100)


def torchs_smoothing(epsilon: float, reduction: str) -> Callable[[Tensor, Batch], Tensor]:
    def peer(logits: Tensor, drawn: Batch) -> Tensor:
        flat, labels = logits.reshape(-1, VOCABULARY), labels_of(drawn).reshape(-1)
        return F.cross_entropy(flat, labels, label_smoothing=epsilon, reduction=reduction)

    return peer


def transformers_smoother(logits: Tensor, drawn: Batch) -> Tensor:
    from transformers.trainer_pt_utils import LabelSmoother

    return LabelSmoother(epsilon=0.2)({"logits": logits}, labels_of(drawn))


def trls_sft(loss_type: str) -> Callable[[Tensor, Batch], Tensor]:
    """SFTTrainer.compute_loss on a model whose fused head gives the logprobs of our logits."""

    def peer(logits: Tensor, drawn: Batch) -> Tensor:
        from trl.trainer.sft_trainer import SFTTrainer

        mask = drawn["mask"]
        logprobs = torch.stack(outputs_of(logits, drawn["targets"])["logprobs"])

        def model(**_: Any) -> SimpleNamespace:
            zeros = torch.zeros(mask.shape)
            return SimpleNamespace(log_probs=logprobs * mask, label_mask=mask, entropy=zeros, is_top1=zeros)

        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            aux_loss_enabled=False,
            compute_loss_func=None,
            label_smoother=None,
            accelerator=SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda values: values),
            args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False, max_length=None),
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {"labels": labels_of(drawn), "attention_mask": torch.ones(mask.shape, dtype=torch.int64)}
        return SFTTrainer.compute_loss(trainer, model, inputs)  # type: ignore[arg-type]

    return peer


def router_z_loss(logits: Tensor, drawn: Batch) -> Tensor:
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    return router_z_loss_func(logits[drawn["mask"]].unsqueeze(0))  # type: ignore[return-value]


def trls_entropy(logits: Tensor, drawn: Batch) -> Tensor:
    from trl.trainer.utils import entropy_from_logits

    return -entropy_from_logits(logits)[drawn["mask"]].mean()


def value_differences(loss: str, settings: dict[str, Any], peer: Callable[..., Tensor]) -> tuple[float, float]:
    """The same for values and returns, by the mean over all tokens."""
    chance = torch.Generator().manual_seed(0)
    values = (3 * torch.randn(SEQUENCES, POSITIONS, generator=chance, dtype=torch.float64)).requires_grad_()
    returns = torch.randn(SEQUENCES, POSITIONS, generator=chance)
    ones = torch.ones(POSITIONS)
    data = [Datum(ModelInput.from_ints([0] * POSITIONS), {"weights": ones, "returns": row}) for row in returns]
    ours, _ = get_loss(loss, **settings)(data, {"values": list(values)})
    theirs = peer(values, returns.double())
    slopes = [torch.autograd.grad(value, values, retain_graph=True)[0] for value in (ours, theirs)]
    return float((ours - theirs).detach().abs()), float((slopes[0] - slopes[1]).abs().max())


def case(
    loss: str,
    settings: dict[str, Any],
    name: str,
    peer: Callable[..., Tensor],
    *,
    compare: Any = differences,
    **more: Any,
) -> Parity:
    """One comparison; the package is the first part of the peer's name."""
    package = name.partition(".")[0]
    return Parity(loss, name, package, lambda: compare(loss, settings, peer), settings, **more)


TOKEN_MEAN = {"reduction": "token-mean"}
CASES: list[Parity] = [
    case("label_smoothing", {"epsilon": 0.1}, "torch.nn.functional.cross_entropy", torchs_smoothing(0.1, "sum")),
    case(
        "label_smoothing",
        {"epsilon": 0.4, **TOKEN_MEAN},
        "torch.nn.functional.cross_entropy",
        torchs_smoothing(0.4, "mean"),
    ),
    case(
        "label_smoothing",
        {"epsilon": 0.2, **TOKEN_MEAN},
        "transformers.trainer_pt_utils.LabelSmoother",
        transformers_smoother,
        tolerance=1e-6,
        note="the smoothed part of theirs is added up in float32, whatever the logits are",
    ),
    case(
        "cross_entropy",
        TOKEN_MEAN,
        "trl.trainer.sft_trainer.SFTTrainer.compute_loss",
        trls_sft("nll"),
        note="loss_type nll; ours by the mean over tokens, which is not our default",
    ),
    case(
        "dft",
        {},
        "trl.trainer.sft_trainer.SFTTrainer.compute_loss",
        trls_sft("dft"),
        note="loss_type dft",
    ),
    case(
        "z_loss",
        {"coefficient": 1.0, **TOKEN_MEAN},
        "transformers.models.switch_transformers.modeling_switch_transformers.router_z_loss_func",
        router_z_loss,
        note="theirs is over a router's logits, has no coefficient and is a mean over tokens",
    ),
    case(
        "entropy_bonus",
        {"coefficient": 1.0, **TOKEN_MEAN},
        "trl.trainer.utils.entropy_from_logits",
        trls_entropy,
        note="the entropy itself; its mean over tokens is ours with a coefficient of 1, negated",
    ),
    case(
        "value_mse",
        {},
        "torch.nn.functional.mse_loss",
        lambda values, returns: 0.5 * F.mse_loss(values, returns),
        compare=value_differences,
        note="ours has a factor of 1/2",
    ),
    case(
        "value_huber",
        {"delta": 0.75},
        "torch.nn.functional.huber_loss",
        lambda values, returns: F.huber_loss(values, returns, delta=0.75),
        compare=value_differences,
    ),
]
