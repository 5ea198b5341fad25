"""Advantages, KL penalties and the off-policy mask against other libraries' own functions, as installed."""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lossbook import Datum, get_loss
from lossbook.losses import AdaptiveEntropy
from lossbook.losses.advantages.from_rewards import centred, gpg
from lossbook.losses.advantages.from_values import discounted, kl_penalized_advantages

from .verl_core import advantage

LENGTHS = (3, 1, 5)


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside, not ours to mend
        return pytest.importorskip(name, reason="a comparison with this library")


def rows(low: float, high: float, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [low + (high - low) * torch.rand(n, generator=generator) for n in LENGTHS]


LOGPROBS, REFERENCE, ADVANTAGES = rows(-3, 0, 1), rows(-3, 0, 2), rows(-1, 1, 3)
MASKS = [torch.tensor(mask) for mask in ([0.0, 1, 1], [1.0], [0.0, 1, 1, 0, 1])]
#: Without gaps: over a gap, as an environment writes, lossbook does not discount, and the cookbook does.
WHOLE = [torch.tensor(mask) for mask in ([1.0, 1, 1], [1.0], [1.0, 1, 1, 1, 0])]


def test_centred_rewards_are_the_tinker_cookbooks_advantages() -> None:
    processing = imported("tinker_cookbook.rl.data_processing")
    groups = [[1.0, 0.0, 0.25], [2.0, 2.0], [5.0]]
    given = [SimpleNamespace(get_total_rewards=lambda own=own: own) for own in groups]
    theirs = torch.cat(processing.compute_advantages(given)).double()
    ids = [i for i, own in enumerate(groups) for _ in own]
    torch.testing.assert_close(centred([reward for own in groups for reward in own], ids), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_gpg_with_its_count_of_rewards_that_are_not_0_is_verls(scale: float) -> None:
    groups = [[1.0, 0.0, 0.25], [2.0, 2.0], [0.0, 0.5, 0.0, 3.0]]  # a group of one keeps its reward in verl
    rewards = [scale * reward for own in groups for reward in own]
    ids = [i for i, own in enumerate(groups) for _ in own]
    given = torch.zeros(len(rewards), 3, dtype=torch.float64)
    given[:, 1] = torch.tensor(rewards, dtype=torch.float64)
    mask = torch.ones_like(given)
    theirs, _ = advantage("gpg")(given, mask, np.array(ids))
    ours = gpg(rewards, ids, counted="nonzero")
    torch.testing.assert_close(ours[:, None].expand_as(theirs), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("discount", "masks"), [(0.0, MASKS), (0.9, WHOLE)], ids=["0.0", "0.9"])
def test_the_centred_kl_penalty_is_the_tinker_cookbooks(
    discount: float, masks: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, tinker = imported("tinker_cookbook.rl.metrics"), imported("tinker")

    async def score(client: Any, sequences: Any) -> Any:
        return [[None, *row.tolist()] for row in REFERENCE], None

    monkeypatch.setattr(metrics, "score_sequences", score)
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(range(n))),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_torch(torch.arange(1, n + 1)),
                "logprobs": tinker.TensorData.from_torch(LOGPROBS[i]),
                "mask": tinker.TensorData.from_torch(masks[i]),
                "advantages": tinker.TensorData.from_torch(ADVANTAGES[i]),
            },
        )
        for i, n in enumerate(LENGTHS)
    ]
    asyncio.run(metrics.incorporate_kl_penalty(data, None, 0.5, discount))
    ours = kl_penalized_advantages(
        ADVANTAGES, LOGPROBS, REFERENCE, coefficient=0.5, weights=masks, is_centred=True, discount=discount
    )
    for tensor, datum in zip(ours, data, strict=True):
        theirs = datum.loss_fn_inputs["advantages"].to_torch().double()
        torch.testing.assert_close(tensor, theirs, rtol=1e-5, atol=1e-6)


def test_the_discounted_sum_is_the_tinker_cookbooks() -> None:
    metrics = imported("tinker_cookbook.rl.metrics")
    values = LOGPROBS[2].double()
    theirs = metrics.discounted_future_sum_vectorized(values, 0.9)
    torch.testing.assert_close(discounted(values, 0.9), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threshold", [0.05, 0.4, 2.0])
def test_the_off_policy_mask_is_trls(threshold: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = importlib.import_module("trl").GRPOTrainer
    width = max(LENGTHS)
    padded = {
        name: torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in table])
        for name, table in (("p", LOGPROBS), ("u", REFERENCE), ("m", MASKS))
    }
    advantages = torch.tensor([-1.0, 0.5, -0.25])
    theirs = trainer.get_off_policy_mask(advantages[:, None], padded["p"], padded["u"], padded["m"], threshold)[:, 0]
    data = [
        Datum(
            list(range(n)),
            {
                "target_tokens": list(range(n)),
                "weights": MASKS[i].tolist(),
                "sampling_logprobs": LOGPROBS[i].tolist(),
                "rollout_logprobs": REFERENCE[i].tolist(),
                "advantages": [float(advantages[i])] * n,
            },
        )
        for i, n in enumerate(LENGTHS)
    ]
    leaves = [row.double().requires_grad_() for row in LOGPROBS]
    value, _ = get_loss("importance_sampling+off_policy_mask", threshold=threshold)(data, leaves)
    for i, gradient in enumerate(torch.autograd.grad(value, leaves)):
        # On policy a token's gradient is -advantage, where it is not dropped.
        expected = -advantages[i] * theirs[i] * MASKS[i]
        torch.testing.assert_close(gradient.float(), expected, rtol=1e-5, atol=1e-5)


class OneStep(SimpleNamespace):
    """A GRPO trainer at an optimizer step over one micro-batch: all that its loss reads, and the state of its entropy's control."""

    def __init__(self, target: float, coefficient: float, delta: float, lowest: float, highest: float) -> None:
        of_args = {"entropy_target": target, "entropy_coef_delta": delta}
        of_args |= {"entropy_coef_min": lowest, "entropy_coef_max": highest, "delta": None, "steps_per_generation": 1}
        alone = SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x, sync_gradients=True, is_main_process=True
        )
        super().__init__(
            args=SimpleNamespace(**of_args),
            accelerator=alone,
            model=SimpleNamespace(training=True),
            loss_type="dapo",
            importance_sampling_level="token",
            beta=0.0,
            epsilon_low=0.2,
            epsilon_high=0.2,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            use_vllm=False,
            aux_loss_enabled=False,
            current_gradient_accumulation_steps=1,
            use_adaptive_entropy=True,
            entropy_coef=coefficient,
            _entropy_bonus_enabled=True,
            _entropy_window_stats=None,
            _last_world_entropy=float("inf"),
            _metrics={"train": defaultdict(list)},
        )

    def stepped(self, entropies: torch.Tensor) -> float:
        """The loss of a step over tokens of advantage 0 and these entropies: minus the coefficient times their mean."""
        logprobs = torch.full((1, len(entropies)), -1.0)
        self._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropies[None], None)
        tokens = torch.zeros(1, len(entropies), dtype=torch.long)
        inputs = {"prompt_ids": tokens, "prompt_mask": tokens, "completion_ids": tokens, "completion_mask": tokens + 1}
        inputs |= {"advantages": torch.zeros(1), "num_items_in_batch": torch.tensor(len(entropies))}
        return float(imported("trl").GRPOTrainer._compute_loss(self, None, inputs))


def test_the_adaptive_entropy_coefficient_is_trls() -> None:
    numbers = {"target": 1.0, "coefficient": 0.01, "lowest": 0.004, "highest": 0.02}
    control, theirs = AdaptiveEntropy(step=0.004, **numbers), OneStep(delta=0.004, **numbers)
    for mean in (0.9, 1.0, 0.2, 0.5, 1.5, 3.0, 2.0, 2.0, 2.0, 2.0, 0.75, 1.25):
        entropies = torch.tensor([mean - 0.125, mean, mean + 0.125], dtype=torch.float64)
        assert theirs.stepped(entropies) == pytest.approx(-control.applied * mean, rel=1e-6)
        control = control.after(mean)
        assert theirs.entropy_coef == pytest.approx(control.coefficient, rel=1e-12)
