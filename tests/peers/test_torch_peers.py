"""Our losses against torch's own and against PPO as its authors' pseudo-code has it, through logits, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lossbook import Datum, ModelInput, get_loss

TOLERANCE = {"rtol": 0, "atol": 1e-12}
VOCABULARY = 7


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Logits [B, N, V], targets [B, N] and a mask [B, N] of one to three datums, the very first position not masked."""
    datums, positions = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    chance = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mask = torch.rand(datums, positions, generator=chance) < 0.7
    mask[0, 0] = True
    return {
        "logits": 3 * torch.randn(datums, positions, VOCABULARY, generator=chance, dtype=torch.float64),
        "targets": torch.randint(0, VOCABULARY, (datums, positions), generator=chance),
        "mask": mask,
        # Drawn in float32, as datums store them.
        "advantages": torch.randn(datums, positions, generator=chance).double(),
        "shift": (0.4 * torch.randn(datums, positions, generator=chance)).double(),
    }


def logprobs_of(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def datums_of(batch: dict[str, Any], **inputs: Tensor) -> list[Datum]:
    columns = {"target_tokens": batch["targets"], "weights": batch["mask"].float(), **inputs}
    return [
        Datum(ModelInput.from_ints([0] * len(row)), {key: value[i] for key, value in columns.items()})
        for i, row in enumerate(batch["targets"])
    ]


def value_and_slope(value: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value, logits, retain_graph=True)[0]


def assert_same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    for mine, peer in zip(value_and_slope(ours, logits), value_and_slope(theirs, logits), strict=True):
        torch.testing.assert_close(mine, peer, **TOLERANCE)


@pytest.mark.parametrize(("reduction", "peer"), [("sum", "sum"), ("token-mean", "mean")])
@given(batch=batches())
@settings(max_examples=25)
def test_cross_entropy_equals_torchs_own_in_value_and_gradient(
    reduction: str, peer: str, batch: dict[str, Any]
) -> None:
    logits = batch["logits"].requires_grad_()
    ours, _ = get_loss("cross_entropy", reduction=reduction)(
        datums_of(batch), list(logprobs_of(logits, batch["targets"]))
    )
    labels = batch["targets"].masked_fill(~batch["mask"], -100)
    theirs = F.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1), reduction=peer)
    assert_same(ours, theirs, logits)


@given(batch=batches())
@settings(max_examples=25)
def test_cross_entropy_of_all_targets_is_torchs_own_with_soft_labels(batch: dict[str, Any]) -> None:
    logits = batch["logits"].requires_grad_()
    # Stored in float32, so compare with what is stored.
    labels = logits.detach().flip(-1).softmax(-1).float().double()
    every_token = torch.arange(VOCABULARY).expand(logits.shape[1], -1)
    data = [
        Datum(ModelInput.from_ints([0] * len(row)), {"target_tokens": every_token, "weights": row}) for row in labels
    ]
    ours, _ = get_loss("cross_entropy")(data, list(logits.log_softmax(-1)))
    theirs = F.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1, VOCABULARY), reduction="sum")
    assert_same(ours, theirs, logits)


@given(batch=batches())
@settings(max_examples=25)
def test_ppo_equals_its_textbook_form_on_padded_batches(batch: dict[str, Any]) -> None:
    logits = batch["logits"].requires_grad_()
    logprobs = logprobs_of(logits, batch["targets"])
    sampling = (logprobs.detach() + batch["shift"]).clamp(max=0).float().double()
    data = datums_of(batch, sampling_logprobs=sampling, advantages=batch["advantages"])
    ours, metrics = get_loss("ppo", reduction="token-mean")(data, list(logprobs))

    ratio = torch.exp(logprobs - sampling)
    unclipped = ratio * batch["advantages"]
    clipped = torch.clamp(ratio, 0.8, 1.2) * batch["advantages"]
    mask = batch["mask"].double()
    theirs = -(torch.min(unclipped, clipped) * mask).sum() / mask.sum()
    assert_same(ours, theirs, logits)
    fraction = ((clipped < unclipped).double() * mask).sum() / mask.sum()
    assert metrics["clip_fraction"] == pytest.approx(float(fraction))


@given(batch=batches())
@settings(max_examples=25)
def test_the_k3_term_of_grpo_equals_torchs_kl_div_in_expectation(batch: dict[str, Any]) -> None:
    # Every token of the vocabulary as a target, weighed by how often the policy samples it.
    policy = batch["logits"].log_softmax(-1)
    reference = (batch["logits"] + batch["shift"].unsqueeze(-1) * torch.arange(VOCABULARY)).log_softmax(-1)
    weights, reference = policy.exp().float(), reference.float()
    every_token = torch.arange(VOCABULARY).expand(policy.shape[1], -1)
    data = [
        Datum(
            ModelInput.from_ints([0] * len(row)),
            {
                "target_tokens": every_token,
                "weights": weights[i],
                "ref_logprobs": reference[i],
                "sampling_logprobs": row,
                "advantages": torch.zeros_like(row),
            },
        )
        for i, row in enumerate(policy)
    ]
    ours, _ = get_loss("grpo", kl_coefficient=1.0, reduction="sum")(data, list(policy))
    theirs = F.kl_div(reference.double(), policy, reduction="sum", log_target=True)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5, abs=1e-5)  # inputs are stored in float32


@given(batch=batches())
@settings(max_examples=15)
def test_dpo_equals_its_textbook_form_on_padded_pairs(batch: dict[str, Any]) -> None:
    logits = torch.cat([batch["logits"], batch["logits"].flip(2)]).requires_grad_()
    targets = batch["targets"].repeat(2, 1)
    mask = torch.ones_like(targets, dtype=torch.float64)
    mask[:, 0] = 0.5
    logprobs = logprobs_of(logits, targets)
    reference = (logprobs.detach() + batch["shift"].repeat(2, 1)).clamp(max=0).float().double()
    pairs = len(targets) // 2
    order = [i + side * pairs for i in range(pairs) for side in (0, 1)]  # chosen, rejected, chosen, ...
    data = datums_of({"targets": targets[order], "mask": mask[order]}, ref_logprobs=reference[order])
    ours, _ = get_loss("dpo", beta=0.3)(data, list(logprobs[order]))
    chosen, rejected = ((logprobs - reference) * mask).sum(1).split(pairs)
    theirs = -F.logsigmoid(0.3 * (chosen - rejected)).mean()
    assert_same(ours, theirs, logits)


@given(seed=st.integers(0, 2**32 - 1), pairs=st.integers(1, 4))
@settings(max_examples=15)
def test_info_nce_equals_torchs_cross_entropy_in_both_directions(seed: int, pairs: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(2 * pairs, 5, generator=chance, dtype=torch.float64).requires_grad_()
    data = [Datum(ModelInput.from_ints([0]))] * (2 * pairs)
    ours, _ = get_loss("info_nce", temperature=0.2)(data, list(embeddings))
    queries, documents = embeddings[:pairs], embeddings[pairs:]
    similarity = F.cosine_similarity(queries.unsqueeze(1), documents.unsqueeze(0), dim=-1) / 0.2
    diagonal = torch.arange(pairs)
    theirs = (F.cross_entropy(similarity, diagonal) + F.cross_entropy(similarity.T, diagonal)) / 2
    assert_same(ours, theirs, embeddings)
