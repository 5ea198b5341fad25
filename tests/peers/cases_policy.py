"""Policy losses against the loss of TRL's own trainers, called with a stub in place of the trainer and of its model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss

from .parity import Parity

#: Responses of different lengths in one padded batch.
LENGTHS = (5, 1, 8, 3, 7, 2)
LONGEST = max(LENGTHS)
#: By how much the policy has moved, in nats per token: from hardly to beyond every clip.
SPREADS = (1e-4, 0.05, 0.3, 1.0)

#: Logprobs, sampler's and reference's logprobs, mask [B, L] and advantages [B] to a loss.
Peer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def trainer(name: str, **settings: Any) -> Peer:
    """`_compute_loss` of one of TRL's trainers; settings of its config, or of itself."""

    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        kind = trainer_class(name)
        own = {"loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0, "delta": None}
        own |= {"epsilon_low": 0.2, "epsilon_high": 0.2, "max_completion_length": LONGEST, **settings}
        options = {"use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
        options |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
        options |= {"steps_per_generation": 1}
        stub: Any = SimpleNamespace(
            args=SimpleNamespace(**{**options, **own}),
            **own,
            _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            use_vllm=False,
            vllm_importance_sampling_correction=False,
            model=SimpleNamespace(training=True),
            current_gradient_accumulation_steps=1,
            accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
            get_gamma_weights=getattr(kind, "get_gamma_weights", None),
            _entropy_bonus_enabled=False,
            _metrics={"train": defaultdict(list)},
        )
        inputs = {
            "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
            "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
            "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
            "completion_mask": mask.long(),
            "advantages": advantages,
            "old_per_token_logps": sampling,
            "old_logps": (sampling * mask).sum(1),
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        }
        return kind._compute_loss(stub, None, inputs)

    return compute


def trainer_class(name: str) -> Any:
    """One of TRL's trainers by name."""
    if name == "GMPOTrainer":
        from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer

        return GMPOTrainer
    from trl import GRPOTrainer, RLOOTrainer

    return {"GRPOTrainer": GRPOTrainer, "RLOOTrainer": RLOOTrainer}[name]


def batch(spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logprobs [B, L] (float64), sampler's and reference's, mask and advantages, whose numbers float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), LONGEST)
    mask = (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).double()
    sampling = -(0.2 + 4 * torch.rand(shape, generator=generator)).float().double()
    logprobs = (sampling + spread * torch.randn(shape, generator=generator).double()).clamp(max=-1e-3)
    reference = (sampling + 0.5 * torch.randn(shape, generator=generator).double()).clamp(max=-1e-3).float().double()
    advantages = torch.randn(len(LENGTHS), generator=generator).float().double()
    return logprobs, sampling, reference, mask, advantages


def differences(ours: Any, peer: Peer) -> tuple[float, float]:
    """The largest over every spread and a few draws."""
    value, gradient = 0.0, 0.0
    for seed, spread in enumerate(SPREADS * 3):
        logprobs, sampling, reference, mask, advantages = batch(spread, seed)
        data = [
            Datum(
                ModelInput.from_ints(list(range(n))),
                {
                    "target_tokens": [0] * n,
                    "weights": [1.0] * n,
                    "sampling_logprobs": sampling[i, :n].numpy(),
                    "ref_logprobs": reference[i, :n].numpy(),
                    "advantages": [float(advantages[i])] * n,
                },
            )
            for i, n in enumerate(LENGTHS)
        ]
        here, there = (logprobs.clone().requires_grad_() for _ in range(2))
        mine, _ = ours(data, [here[i, :n] for i, n in enumerate(LENGTHS)])
        theirs = peer(there, sampling, reference, mask, advantages)
        (slope,) = torch.autograd.grad(mine, here)
        (expected,) = torch.autograd.grad(theirs, there)
        value = max(value, abs(float(mine.detach() - theirs.detach())))
        gradient = max(gradient, float((slope - expected).abs().max()))
    return value, gradient


def case(loss: str, peer: str, note: str, options: dict[str, Any], **settings: Any) -> Parity:
    """One loss of ours, with its settings, against one of TRL's trainers with its options."""
    shown = ",".join(f"{key}={value}" for key, value in options.items())
    return Parity(
        loss=loss,
        peer=f"{peer}._compute_loss({shown})",
        package="trl",
        settings=settings,
        differences=lambda: differences(get_loss(loss, **settings), trainer(peer, **options)),
        note=note,
    )


_GSPO = {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}

CASES: list[Parity] = [
    case(
        "grpo",
        "GRPOTrainer",
        "TRL's beta is 0 and its mean one over sequences unless set",
        {"loss_type": "grpo", "beta": 0.001},
        reduction="seq-mean-token-mean",
    ),
    case("grpo", "GRPOTrainer", "the token-mean with a KL term", {"loss_type": "dapo", "beta": 0.001}),
    case(
        "dapo",
        "GRPOTrainer",
        "epsilon_high has to be set: TRL's is 0.2",
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    case(
        "dapo",
        "GRPOTrainer",
        "dual_clip is TRL's delta",
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 3.0},
        dual_clip=3.0,
    ),
    case("dual_clip", "GRPOTrainer", "dual_clip is TRL's delta", {"loss_type": "dapo", "delta": 3.0}),
    case("bnpo", "GRPOTrainer", "on one micro-batch, over which TRL takes its mean", {"loss_type": "bnpo"}),
    case(
        "dr_grpo",
        "GRPOTrainer",
        "norm_length is TRL's max_completion_length",
        {"loss_type": "dr_grpo"},
        norm_length=LONGEST,
    ),
    case("ppo", "GRPOTrainer", "a token-mean", {"loss_type": "dapo"}, reduction="token-mean"),
    case(
        "cispo",
        "GRPOTrainer",
        "epsilon_high is the bound itself in TRL, 0.2 unless set, and there is no lower one",
        {"loss_type": "cispo", "epsilon_high": 4.0},
        reduction="token-mean",
    ),
    case(
        "sapo",
        "GRPOTrainer",
        "not TRL's 1.05, which it rounds to float32: 1e-7 of the value",
        {"loss_type": "sapo", "sapo_temperature_neg": 1.0625},
        temperature_negative=1.0625,
    ),
    case("vespo", "GRPOTrainer", "the defaults of both", {"loss_type": "vespo"}),
    case("gspo", "GRPOTrainer", "the paper's bounds have to be set in TRL", {"loss_type": "grpo", **_GSPO}),
    case("gspo_token", "GRPOTrainer", "the same with one advantage per response", {"loss_type": "grpo", **_GSPO}),
    case(
        "gspo",
        "GRPOTrainer",
        "with TRL's default bounds",
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        clip_low=0.8,
        clip_high=1.2,
    ),
    case("luspo", "GRPOTrainer", "the bounds of GSPO have to be set in TRL", {"loss_type": "luspo", **_GSPO}),
    case("rloo", "RLOOTrainer", "TRL's KL penalty is inside the reward, not in the loss", {}),
    case("gmpo", "GMPOTrainer", "the defaults of both", {"epsilon_low": 0.4, "epsilon_high": 0.4}),
]
