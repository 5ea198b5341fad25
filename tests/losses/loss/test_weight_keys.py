"""A loss takes its weights from the key that its setting `weights` names: its own mask, its own denominator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import (
    EmptyLossError,
    LengthMismatchError,
    LossConfigError,
    LossContractError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    TokenRangeError,
    TraceError,
    UnknownInput,
    WeightsError,
)
from lossbook.losses import Count, Mixture, register_loss, unregister_loss
from lossbook.losses.testing import check_loss
from lossbook.trainer.workers.sent import sent_loss

from ..cases import assert_rows_equal, datum, evaluated
from .test_tensors import assert_same

#: Two answers of a policy, each behind an observation that is to be predicted.
ROWS = [[-0.5, -1.0, -2.0], [-0.25, -4.0]]
ACTED = [[0.0, 0.0, 1.0], [0.0, 2.0]]
SEEN = [[1.0, 1.0, 0.0], [0.5, 0.0]]


def rollouts() -> list[Datum]:
    return [
        datum(3, weights=ACTED[0], observed=SEEN[0], advantages=[9.0, 9.0, 3.0]),
        datum(2, weights=ACTED[1], observed=SEEN[1], advantages=[9.0, -1.0]),
    ]


def both(reduction: str = "token-mean") -> Mixture:
    """REINFORCE on what was sampled, and a tenth of cross-entropy on what was observed."""
    policy = get_loss("reinforce", reduction=reduction)
    return policy + 0.1 * get_loss("cross_entropy", reduction=reduction, weights="observed")


def test_each_part_has_its_own_mask_and_denominator() -> None:
    value, gradients, _ = evaluated(both(), rollouts(), ROWS)
    # policy: (1 x 3 x 2.0 + 2 x -1 x 4.0) / 3 = -2/3; observed: (0.5 + 1.0 + 0.5 x 0.25) / 2.5 = 0.65
    assert value == pytest.approx(-2 / 3 + 0.1 * 0.65)
    assert both().count(rollouts()) == Count((3.0, 2.5))
    # -w A / 3 where it acted, -0.1 w / 2.5 where it observed
    assert_rows_equal(gradients, [[-0.04, -0.04, -1.0], [-0.02, 2 / 3]], 1e-12)


def test_the_model_is_read_where_any_part_has_a_weight() -> None:
    one = datum(3, weights=[0, 0, 1], observed=[0, 2, 0], advantages=[1, 1, 1])
    assert both().active([one]).tolist() == [False, True, True]
    alone = get_loss("cross_entropy", weights="observed")
    assert alone.active(rollouts()).tolist() == [True, True, False, True, False]


def test_one_loss_under_two_keys_has_two_names() -> None:
    mixture = get_loss("cross_entropy") + 2.0 * get_loss("cross_entropy", weights="observed")
    _, _, metrics = evaluated(mixture, rollouts(), ROWS)
    assert metrics == {"cross_entropy/nll": 3.0, "cross_entropy[observed]/nll": pytest.approx(1.75 / 3)}
    assert mixture.name == "1 * cross_entropy + 2 * cross_entropy[observed]"
    assert str(mixture.parts[1][1]) == "cross_entropy(reduction='sum', weights='observed')"
    with pytest.raises(LossContractError, match=r"hold one loss twice: cross_entropy\[observed\], cross_entropy\[ob"):
        get_loss("cross_entropy", weights="observed") + get_loss("cross_entropy", weights="observed")


def test_micro_batches_of_two_keys_add_up() -> None:
    mixture, data = both("seq-mean-token-mean"), rollouts()
    rows = [torch.tensor(row, dtype=torch.float64) for row in ROWS]
    bound = mixture.prepare(data)
    parts = [bound.part([i]).terms([rows[i]])[0] for i in (0, 1)]
    torch.testing.assert_close(sum(parts), bound.terms(rows)[0])
    assert bound.part([1]).count + bound.part([0]).count == bound.count == Count((2.0, 2.0))


def test_a_pair_and_a_loss_over_candidates_take_their_weights_from_a_key_too() -> None:
    pair = [datum(2, weights=[1, 1], mine=w, ref_logprobs=[-1.0, -1.0]) for w in ([0, 1], [1, 0])]
    renamed = [datum(2, weights=w, ref_logprobs=[-1.0, -1.0]) for w in ([0, 1], [1, 0])]
    rows = [[-0.5, -2.0], [-3.0, -1.0]]
    one, other = evaluated(get_loss("dpo", weights="mine"), pair, rows), evaluated(get_loss("dpo"), renamed, rows)
    assert one[0] == other[0]
    assert_rows_equal(one[1], other[1], 0)
    teacher = {"teacher_logprobs": [[-0.1, -3.0], [-1.0, -0.6]]}
    wide = get_loss("topk_forward_kl", weights="mine")
    value, _, _ = evaluated(wide, [datum([[0, 1], [2, 3]], mine=[0, 1], **teacher)], [[[-1.0, -2.0], [-1.0, -0.6]]])
    assert value == pytest.approx(0.0)
    with pytest.raises(LengthMismatchError, match=r"mine is \[2, 2\], one for each of 2 candidates"):
        wide.check([datum([[0, 1], [2, 3]], mine=[[0, 1], [1, 0]], **teacher)])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_on_tensors_the_mask_of_a_key_is_a_tensor_of_that_name(packed: bool) -> None:
    rows = {"logprobs": [torch.tensor(row, dtype=torch.float64) for row in ROWS]}
    assert_same(both(), rollouts(), rows, packed=packed)
    assert_same(get_loss("cross_entropy", weights="observed"), rollouts(), rows, packed=packed)


def test_labels_to_be_ignored_are_ignored_under_every_key() -> None:
    logits = torch.randn(1, 3, 5, dtype=torch.float64)
    given: dict[str, Any] = {
        "advantages": torch.ones(1, 3),
        "observed": torch.tensor([[1, 1, 0]]),
        "mask": torch.tensor([[0, 1, 1]]),
    }
    value, _ = both("sum").on_logits(logits, torch.tensor([[2, -100, 3]]), **given)
    logprobs = logits.log_softmax(-1)[0]
    torch.testing.assert_close(value, -logprobs[2, 3] - 0.1 * logprobs[0, 2])


def test_a_label_that_counts_for_any_part_is_a_token_of_the_vocabulary() -> None:
    logits, labels = torch.zeros(1, 3, 5), torch.tensor([[2, 5, -1]])
    given: dict[str, Any] = {"advantages": torch.ones(1, 3), "mask": torch.tensor([[1, 0, 0]])}
    both("sum").on_logits(logits, labels, observed=torch.tensor([[1, 0, 0]]), **given)
    with pytest.raises(TokenRangeError, match="labels of row 0 is 5 at position 1"):
        both("sum").on_logits(logits, labels, observed=torch.tensor([[0, 1, 0]]), **given)
    vectors = get_loss("info_nce") + get_loss("cross_entropy", weights="observed")
    two: dict[str, Any] = {
        "logits": logits.repeat(2, 1, 1),
        "labels": labels.repeat(2, 1),
        "embeddings": torch.ones(2, 2),
    }
    vectors.on_logits(**two, observed=torch.tensor([[1, 0, 0], [1, 0, 0]]))


def test_a_trace_reads_the_weights_by_their_key() -> None:
    traced = get_loss("cross_entropy", weights="observed").trace()
    assert traced.inputs == ("observed",)
    assert traced(torch.tensor(ROWS[0]), torch.tensor(SEEN[0]))[0] == 1.5
    with pytest.raises(TraceError, match=r"its weights are 'observed-1', and each input of the traced function is"):
        get_loss("cross_entropy", weights="observed-1").trace()


def test_workers_are_told_the_key() -> None:
    sent = sent_loss(both())
    assert sent is not None
    assert str(sent.received()) == str(both())


def test_a_preset_and_a_correction_take_a_key() -> None:
    assert str(get_loss("trl:sft", weights="observed")).endswith("weights='observed')")
    corrected = get_loss("reinforce+token_mask", weights="observed", reduction="token-mean")
    assert corrected.prepare([Datum(ModelInput.from_ints([1, 2]), {"observed": [0, 1], **OTHERS})]).count == Count(
        (1.0,)
    )


OTHERS = {key: [-0.5, -0.5] for key in ("target_tokens", "sampling_logprobs", "rollout_logprobs", "advantages")} | {
    "target_tokens": [1, 2]
}


def masks(**given: Any) -> Callable[[], Any]:
    loss = get_loss("cross_entropy", weights="observed")
    return lambda: loss.on_tensors(logprobs=torch.zeros(1, 2), **given)


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a datum without the key": (
        lambda: both("sum").check([rollouts()[0], datum(2, advantages=[1, 1])]),
        MissingInput,
        "cross_entropy with weights='observed' reads 'observed', which datum 1 of 2 does not carry. It carries: advantages, "
        "target_tokens",
    ),
    "a misspelt key": (
        lambda: get_loss("cross_entropy", weights="observed").check([datum(1, obsrved=[1.0])]),
        MissingInput,
        "Did you mean 'obsrved' to be 'observed'?",
    ),
    "no weight at all": (
        lambda: get_loss("cross_entropy", weights="observed").check([datum(1, weights=[1.0], observed=[0.0])]),
        EmptyLossError,
        "cross_entropy: every weight under 'observed' of all 1 datums is 0",
    ),
    "negative weights": (
        lambda: get_loss("cross_entropy", weights="observed", reduction="token-mean").check([datum(1, observed=[-1])]),
        WeightsError,
        "cross_entropy: datum 0 has negative observed, which reduction 'token-mean' cannot divide by",
    ),
    "not finite": (
        lambda: get_loss("cross_entropy", weights="observed").check([datum(1, observed=[float("inf")])]),
        NonFiniteLossInput,
        "cross_entropy: observed of datum 0 of 1 is inf at position 0",
    ),
    "too many": (
        lambda: get_loss("cross_entropy", weights="observed").check([datum(1, observed=[1.0, 1.0])]),
        LengthMismatchError,
        "datum 0 of 1: observed has 2 entries",
    ),
    "logprobs as weights": (lambda: get_loss("ppo", weights="ref_logprobs"), LossConfigError, "'ref_logprobs' is not"),
    "targets as weights": (lambda: get_loss("ppo", weights="target_tokens"), LossConfigError, "'target_tokens' is not"),
    "a loss without positions": (
        lambda: get_loss("info_nce", weights="observed"),
        LossConfigError,
        "info_nce has no setting 'weights'",
    ),
    "a function of whole datums": (
        lambda: get_loss(lambda data, logprobs_list: (torch.cat(logprobs_list).sum(), {}), weights="observed"),
        LossConfigError,
        "has no setting 'weights'",
    ),
    "a mask that nothing reads": (
        masks(mask=torch.ones(1, 2), observed=torch.ones(1, 2)),
        UnknownInput,
        "cross_entropy reads no mask: it takes its weights from 'observed'",
    ),
    "no tensor of the key": (masks(), MissingInput, "cross_entropy reads 'observed', which was not given"),
    "a tensor of another shape": (masks(observed=torch.ones(1, 3)), ShapeError, "observed is [1, 3]"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_with_a_key_is_one_line_that_says_where(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_setting_of_ones_own_cannot_be_called_weights() -> None:
    with pytest.raises(LossConfigError, match="'weights' belongs to the registry"):

        @register_loss("own_weights")
        def own_weights(logprobs: torch.Tensor, *, weights: float = 1.0) -> torch.Tensor:
            return -logprobs * weights

    with pytest.raises(Exception, match="no loss is registered"):
        unregister_loss("own_weights")


def test_other_parts_inputs_are_no_misspelt_keys() -> None:
    both().check(rollouts(), strict=True)
    with pytest.raises(UnknownInput, match="reinforce does not read 'observed'"):
        get_loss("reinforce").check(rollouts(), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        both(),
        get_loss("cross_entropy") + get_loss("cross_entropy", weights="observed", reduction="seq-mean-token-sum"),
        get_loss("dpo", weights="mine") + get_loss("cross_entropy", weights="observed"),
        get_loss("ppo", weights="mine", reduction="token-mean"),
        get_loss("topk_reverse_kl", weights="mine"),
        get_loss("kto", weights="mine"),
    ],
    ids=lambda loss: loss.name,
)
def test_the_laws_hold_under_other_keys(loss: Any) -> None:
    check_loss(loss, max_examples=4)
