"""Advantages, KL penalties and the off-policy mask against other libraries' own functions, as installed."""

from __future__ import annotations

import asyncio
import importlib
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lossbook import Datum, get_loss
from lossbook.losses.advantages.from_rewards import centred
from lossbook.losses.advantages.from_values import discounted, kl_penalized_advantages

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
