"""High-entropy tokens only: the quantile by hand, over the whole call, and in one forward of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook import Datum, get_loss, register_loss, unregister_loss
from lossbook.datums.errors import LossConfigError, LossContractError
from lossbook.losses import top_entropy
from lossbook.losses.testing import check_loss


def answers(*weights: list[float], **inputs: Any) -> list[Datum]:
    """Datums whose advantages are all -1, so that the gradient of `reinforce` is 1 where a token counts."""
    return [
        Datum(
            list(range(len(own))),
            {"target_tokens": list(range(len(own))), "weights": own, "advantages": [-1.0] * len(own), **inputs},
        )
        for own in weights
    ]


def evaluated(loss: Any, data: list[Datum], entropy: list[list[float]]) -> tuple[float, list[list[float]], dict]:
    rows = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in entropy]
    leaves = [torch.full((len(row),), -2.0, dtype=torch.float64, requires_grad=True) for row in entropy]
    value, metrics = loss(data, {"logprobs": leaves, "entropy": rows})
    gradients = torch.autograd.grad(value, [*leaves, *rows], allow_unused=True)
    assert all(one is None or not one.any() for one in gradients[len(leaves) :])  # none through the entropy
    return float(value.detach()), [one.tolist() for one in gradients[: len(leaves)]], metrics


@pytest.mark.parametrize(
    ("share", "threshold", "kept"),
    [
        # of 0, 1, 2, 3, 10 in two datums; place (1 - share) 4 of them in order
        (0.0, 10.0, [[0, 0], [1, 0, 0]]),
        (0.25, 3.0, [[0, 1], [1, 0, 0]]),
        (0.2, 4.4, [[0, 0], [1, 0, 0]]),
        (0.3, 2.8, [[0, 1], [1, 0, 0]]),
        (0.5, 2.0, [[0, 1], [1, 1, 0]]),
        (1.0, 0.0, [[1, 1], [1, 1, 1]]),
    ],
)
def test_tokens_from_the_quantile_on_count(share: float, threshold: float, kept: list[list[float]]) -> None:
    data = answers([1.0, 1.0], [1.0, 1.0, 1.0])
    loss = get_loss("reinforce+top_entropy", entropy_share=share)
    value, gradients, metrics = evaluated(loss, data, [[0.0, 3.0], [10.0, 2.0, 1.0]])
    assert gradients == kept
    assert value == -2 * sum(map(sum, kept))
    assert metrics["entropy_threshold"] == pytest.approx(threshold, rel=1e-12)
    assert metrics["entropy"] == pytest.approx(16 / 5)
    assert metrics["top_entropy_fraction"] == sum(map(sum, kept)) / 5


def test_masked_tokens_have_no_part_in_the_quantile_and_dropped_ones_stay_in_the_denominator() -> None:
    data = answers([0.0, 1.0, 1.0, 0.0])
    loss = top_entropy("reinforce", entropy_share=0.0, reduction="token-mean")
    assert evaluated(loss, data, [[9.0, 1.0, 2.0, 0.0]])[1] == [[0, 0, 0.5, 0]]


def test_ties_count_together() -> None:
    data = answers([1.0] * 4)
    _, gradients, metrics = evaluated(top_entropy("reinforce"), data, [[1.0, 5.0, 5.0, 5.0]])
    assert gradients == [[0, 1, 1, 1]]
    assert metrics["top_entropy_fraction"] == 0.75


def test_all_zero_entropies_keep_all() -> None:
    assert evaluated(top_entropy("reinforce"), answers([1.0, 1.0]), [[0.0, 0.0]])[1] == [[1, 1]]


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 50).map(lambda n: n / 7), min_size=1, max_size=12),
    st.integers(0, 20).map(lambda n: n / 20),
)
def test_the_quantile_is_torchs(entropy: list[float], share: float) -> None:
    loss = top_entropy("reinforce", entropy_share=share)
    _, gradients, metrics = evaluated(loss, answers([1.0] * len(entropy)), [entropy])
    threshold = torch.quantile(torch.tensor(entropy, dtype=torch.float64), 1 - share)
    assert metrics["entropy_threshold"] == pytest.approx(float(threshold), rel=1e-12, abs=1e-12)
    clear = [i for i, one in enumerate(entropy) if abs(one - float(threshold)) > 1e-9]
    assert [gradients[0][i] for i in clear] == [float(entropy[i] > float(threshold)) for i in clear]


def test_it_is_a_setting_of_the_loss_and_couples_the_batch() -> None:
    loss = top_entropy("grpo", entropy_share=0.4, clip_high=1.28, kl_coefficient=0.0)
    assert loss.couples == "batch"
    assert get_loss("reinforce").spec.linear  # type: ignore[union-attr]
    assert not top_entropy("reinforce").spec.linear  # which tokens count depends on the model
    assert loss.outputs == ("logprobs", "entropy")
    assert get_loss("grpo+top_entropy").settings["entropy_share"] == 0.2
    assert get_loss(loss, entropy_share=0.1).settings["entropy_share"] == 0.1
    with pytest.raises(LossConfigError, match=r"entropy_share=1\.5: input should be less"):
        get_loss("grpo+top_entropy", entropy_share=1.5)
    with pytest.raises(LossContractError, match="has a setting 'entropy_share' of its own"):
        top_entropy(get_loss("grpo+top_entropy"))
    with pytest.raises(LossContractError, match="top_entropy is there twice"):
        get_loss("grpo+top_entropy+top_entropy")


def test_a_loss_of_one_value_a_response_is_refused() -> None:
    register_loss("whole_answers", per="datum")(lambda logprobs, seqs: seqs.mean(logprobs))
    try:
        with pytest.raises(LossContractError, match=r"has one value per response.*no tokens to choose from"):
            top_entropy("whole_answers")
    finally:
        unregister_loss("whole_answers")


def test_with_a_weight_and_a_gate_each_reads_its_own() -> None:
    loss = get_loss("reinforce+token_truncate+top_entropy", entropy_share=0.5)
    data = answers([1.0, 1.0, 1.0], sampling_logprobs=[-2.0] * 3, rollout_logprobs=[-2.5, -2.0, -4.0])
    _, gradients, _ = evaluated(loss, data, [[1.0, 2.0, 3.0]])
    assert gradients == [[0, 1, 2]]


def test_a_model_needs_one_forward_over_several_micro_batches_and_gives_the_tensors_numbers() -> None:
    training = lb.ServiceClient(device="cpu", tokens_per_micro_batch=8).create_lora_training_client("tiny", rank=2)
    data = [
        Datum(
            [3 + i, 5, 7 + i, 9, 11, 2],
            {
                "target_tokens": [5, 7 + i, 9, 11, 2, 1],
                "weights": [0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
                "advantages": [1.0 - i] * 6,
            },
        )
        for i in range(3)
    ]
    loss = top_entropy("reinforce", entropy_share=0.4, reduction="token-mean")
    output = training.forward_backward(data, loss).result()
    assert output.metrics["micro_batches"] == 3
    assert output.metrics["forward_passes"] == 1
    rows = {
        name: [torch.tensor(one[name].to_numpy()).double() for one in output.loss_fn_outputs]
        for name in ("logprobs", "entropy")
    }
    value, metrics = loss(data, rows)
    assert output.metrics["loss:sum"] == pytest.approx(float(value), rel=1e-5)
    assert output.metrics["entropy_threshold"] == pytest.approx(metrics["entropy_threshold"], rel=1e-5)
    assert output.metrics["top_entropy_fraction"] == 6 / 15


@pytest.mark.slow
def test_it_keeps_every_law() -> None:
    check_loss("reinforce+top_entropy", max_examples=3)
    check_loss("ppo+top_entropy", max_examples=3, entropy_share=0.6)
