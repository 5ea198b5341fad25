"""Preparing a call's data once: whatever is asked of it afterwards is what the loss says of the datums themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import Datum, TensorData, get_loss
from lossbook.datums.errors import InvalidLogprobError, LossContractError, NonFiniteLossInput, UnknownInput
from lossbook.losses import Outputs, PerDatum, Seqs, stats
from lossbook.losses.loss.bound import BoundLoss
from lossbook.losses.spec.spec import make_spec
from lossbook.losses.testing import strategies
from lossbook.losses.testing.loss_under_test import LossUnderTest

from ..cases import datum, loss_of, shipped, with_needed

LINEAR = ["cross_entropy", "reinforce", "gpg"]
#: One of each kind: per token, datum and pair, coupling a batch, over embeddings, candidates, weights of its own, mixed.
KINDS: dict[str, Any] = {
    "ppo": get_loss("ppo", reduction="seq-mean-token-mean"),
    "cross_entropy": get_loss("cross_entropy", reduction="token-mean"),
    "gspo": get_loss("gspo"),
    "dpo": get_loss("dpo"),
    "kto": get_loss("kto"),
    "info_nce": get_loss("info_nce"),
    "candidates": next(loss for loss in map(with_needed, shipped()) if loss.spec.candidates),
    "grpo + cross_entropy": 0.5 * get_loss("grpo") + 0.1 * get_loss("cross_entropy", reduction="token-mean"),
    "reinforce + cross_entropy": 2.0 * get_loss("reinforce") + get_loss("cross_entropy"),
    "ppo+sequence_mask": get_loss("ppo+sequence_mask"),
}


def batch_style(data: Sequence[Datum], logprobs_list: Sequence[torch.Tensor]) -> Any:
    return -sum(x.sum() for x in logprobs_list), {"datums": float(len(data))}


def orders(loss: LossUnderTest, data: Sequence[Datum], draw: Any) -> list[int]:
    """Some groups of the data, in any order."""
    groups = loss.groups(data)
    chosen = draw(st.lists(st.sampled_from(range(len(groups))), unique=True, min_size=1))
    return [i for k in chosen for i in groups[k]]


def packed_outputs(prepared: BoundLoss, outputs: Any, order: Sequence[int]) -> Outputs:
    """What the trainer would hand over for the datums in `order`: active positions only."""
    active = prepared.active[torch.from_numpy(prepared.positions(order))]
    packed = Outputs(active=active)
    for name, tensors in outputs.items():
        own = [tensors[i] for i in order]
        if name == "embeddings":
            packed.embeddings = torch.stack(own)
            continue
        width = max((t.shape[1] for t in own if t.ndim == 2), default=None)
        if width is not None:
            own = [t.unsqueeze(1) if t.ndim == 1 else t for t in own]
            own = [torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in own]
        setattr(packed, name, torch.cat(own)[active])
    return packed


@pytest.mark.parametrize("loss", KINDS.values(), ids=KINDS)
@settings(max_examples=8)
@given(draw=st.data())
def test_what_is_prepared_once_is_what_the_loss_says_of_the_datums(loss: Any, draw: Any) -> None:
    loss_under_test = LossUnderTest(loss)
    data = draw.draw(strategies.datums(loss_under_test))
    outputs = draw.draw(strategies.outputs(loss_under_test, data))
    prepared = loss.prepare(data)
    assert prepared.count == loss.count(data) == loss.check(data)
    assert torch.equal(prepared.active, loss.active(data))
    total, bound_metrics = prepared.terms(outputs)
    again, metrics = loss.terms(data, outputs)
    assert torch.equal(total, again)
    assert stats.values(bound_metrics) == pytest.approx(stats.values(metrics), rel=0, abs=0, nan_ok=True)

    order = orders(loss_under_test, data, draw.draw)
    chosen = [data[i] for i in order]
    own = {name: [tensors[i] for i in order] for name, tensors in outputs.items()}
    expected, metrics = loss.terms(chosen, own)
    given_outputs = [own] if not loss_under_test.reads_tokens else [own, packed_outputs(prepared, outputs, order)]
    for handed in given_outputs:
        total, part_metrics = prepared.terms(handed, order)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
        assert stats.values(part_metrics) == pytest.approx(stats.values(metrics), rel=1e-12, nan_ok=True)


def test_targets_of_several_widths_are_as_wide_as_the_datums_asked_for() -> None:
    loss = get_loss("cross_entropy")
    data = [datum([[0, 1, 2]], weights=[[1.0, 0.5, 0.25]]), datum([1, 2], weights=[1.0, 0.0]), datum([[1, 0]])]
    outputs = [torch.tensor(row) for row in ([[-1.0, -2.0, -4.0]], [-3.0, -9.0], [[-1.0, -0.5]])]
    prepared = loss.prepare(data)
    for order, total in (([1], 3.0), ([2, 1], 4.5), ([2, 0], 4.5), ([0, 1, 2], 7.5)):
        part_total, metrics = prepared.terms([outputs[i] for i in order], order)
        assert float(part_total) == total
        assert (
            metrics["nll"].value()
            == loss.terms([data[i] for i in order], [outputs[i] for i in order])[1]["nll"].value()
        )


def test_a_function_of_datums_and_lists_is_handed_the_datums_asked_for() -> None:
    loss = get_loss(batch_style)
    data = [datum(2), datum(1), datum(3)]
    prepared = loss.prepare(data)
    assert prepared.active.tolist() == [True] * 6
    assert prepared.lengths.tolist() == [2, 1, 3]
    total, metrics = prepared.terms([torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0, -5.0])], [2, 0])
    assert (float(total), metrics["datums"].value()) == (15.0, 2.0)
    assert prepared.logprob_gradient() is None


def test_errors_name_a_datum_by_its_number_in_the_call() -> None:
    data = [datum(2), datum(2, weights=[0.0, 1.0]), datum(1)]
    prepared = get_loss("cross_entropy").prepare(data)
    with pytest.raises(NonFiniteLossInput, match="logprobs of datum 1 are nan at position 1"):
        prepared.terms([torch.tensor([-1.0]), torch.tensor([0.0, torch.nan])], [2, 1])
    with pytest.raises(NonFiniteLossInput, match="logprobs of datum 2 are nan at position 0"):
        prepared.terms([torch.tensor([torch.nan])], [2])
    numbered = Outputs(logprobs=torch.tensor([torch.nan]), numbers=[7])
    for of_one in (lambda: prepared.terms(numbered, [2]), lambda: prepared.part([2]).terms(numbered)):
        with pytest.raises(NonFiniteLossInput, match="logprobs of datum 7 are nan at position 0"):
            of_one()


@pytest.mark.parametrize("factor", [None, 0.5])
def test_outputs_that_were_taken_unchecked_are_checked_when_asked(factor: float | None) -> None:
    data = [datum(2, weights=[0.0, 1.0])]
    loss = get_loss("cross_entropy") if factor is None else factor * get_loss("cross_entropy")
    prepared = loss.prepare(data)
    for wrong, error in ((torch.nan, NonFiniteLossInput), (0.5, InvalidLogprobError)):
        outputs = Outputs(logprobs=torch.tensor([-1.0, wrong]), is_unchecked=True)
        prepared.terms(outputs)
        with pytest.raises(error, match=r"logprobs of datum 0 are .* at position 1"):
            prepared.check_outputs(outputs)
    prepared.check_outputs(Outputs(logprobs=torch.tensor([torch.nan, -1.0])))


def test_data_is_packed_once_however_much_is_asked() -> None:
    reads: list[int] = []

    class Counted(TensorData):
        def to_numpy(self) -> np.ndarray:
            reads.append(1)
            return super().to_numpy()

    data = [datum(3, weights=Counted([0.0, 1.0, 1.0])) for _ in range(6)]
    prepared = get_loss("cross_entropy", reduction="token-mean").prepare(data)
    for order in ([0, 1], [5, 3], [2], [4]):
        prepared.terms([torch.full((3,), -1.0)] * len(order), order)
        prepared.logprob_gradient(order)
    assert (float(prepared.count), int(prepared.active.sum()), len(reads)) == (12.0, 12, 6)


# The gradient of a linear loss, known before the forward.


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("reduction", ["sum", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=10)
@given(draw=st.data())
def test_the_promised_gradient_is_the_real_one_bit_for_bit(name: str, reduction: str, dtype: Any, draw: Any) -> None:
    loss = get_loss(name, reduction=reduction)
    loss_under_test = LossUnderTest(loss)
    data = draw.draw(strategies.datums(loss_under_test))
    outputs = draw.draw(strategies.outputs(loss_under_test, data))
    prepared = loss.prepare(data)
    order = orders(loss_under_test, data, draw.draw)
    handed = packed_outputs(prepared, outputs, order)
    handed.logprobs = handed.logprobs.to(dtype).requires_grad_()
    total, _ = prepared.terms(handed, order)
    (real,) = torch.autograd.grad(total / prepared.count, handed.logprobs)
    promised = prepared.logprob_gradient(order, dtype=dtype)
    assert promised.dtype == dtype
    assert torch.equal(promised, real)


def test_the_promised_gradient_is_divided_by_the_count_of_the_whole_call() -> None:
    data = [datum(2, weights=[1.0, 3.0]), datum(1, weights=[4.0])]
    loss = get_loss("cross_entropy", reduction="token-mean")
    prepared = loss.prepare(data)
    assert prepared.logprob_gradient().tolist() == [-0.125, -0.375, -0.5]
    assert prepared.logprob_gradient([1]).tolist() == [-0.5]
    assert prepared.logprob_gradient([1], prepared.count + prepared.count).tolist() == [-0.25]
    with torch.no_grad():
        assert prepared.logprob_gradient([1]).tolist() == [-0.5]


def test_a_mixture_of_linear_losses_is_linear_and_any_other_is_not() -> None:
    data = [datum(2, weights=[0.0, 2.0], advantages=[1.0, 3.0], sampling_logprobs=[-1.0, -1.0])]
    mixture = 0.5 * get_loss("reinforce") + get_loss("cross_entropy", reduction="token-mean")
    assert mixture.prepare(data).logprob_gradient().tolist() == [-4.0]
    assert (mixture + 0.1 * get_loss("ppo")).prepare(data).logprob_gradient() is None
    assert get_loss("importance_sampling").prepare(data).logprob_gradient() is None


@pytest.mark.parametrize("name", [n for n in shipped() if with_needed(n).outputs == ("logprobs",)])
def test_no_other_loss_of_ours_is_declared_linear(name: str) -> None:
    assert with_needed(name).spec.linear == (name in LINEAR)


def test_what_cannot_be_linear_in_the_logprobs_alone_is_refused_at_once() -> None:
    def two_outputs(logprobs: Any, entropy: Any) -> Any:
        return -logprobs - entropy

    def pooled(embeddings: Any, label: PerDatum, seqs: Seqs) -> Any:
        return embeddings.sum(1)

    for function, per, reads in ((two_outputs, "token", "logprobs, entropy"), (pooled, "datum", "embeddings")):
        with pytest.raises(LossContractError, match=rf"{function.__name__} reads {reads}$"):
            make_spec(function, function.__name__, per=per, linear=True)
    with pytest.raises(LossContractError, match=r"reads logprobs as fn\(data, logprobs_list\)"):
        make_spec(batch_style, "batch_style", per="batch", linear=True)


def test_a_linear_loss_of_ones_own_is_taken_at_its_word() -> None:
    def lengths(logprobs: Any, seqs: Seqs) -> Any:
        return -seqs.mean(logprobs)

    prepared = loss_of(lengths, per="datum", reduction="sum", linear=True).prepare([datum(4), datum(2)])
    assert prepared.logprob_gradient().tolist() == [-0.25] * 4 + [-0.5] * 2


def test_the_usual_key_of_weights_is_read_where_no_other_is_named() -> None:
    data = [datum(2, mine=[1.0, 1.0]), datum(1, mine=[1.0])]
    assert get_loss("info_nce").prepare(data).weight_keys == ("weights",)
    assert get_loss("cross_entropy").prepare(data).weight_keys == ("weights",)
    assert get_loss("cross_entropy", weights="mine").prepare(data).weight_keys == ("mine",)


def summed(data: Any, logprobs_list: Any) -> Any:
    return sum(logprobs.sum() for logprobs in logprobs_list), {}


def test_keys_that_a_loss_does_not_read_are_refused_only_when_asked() -> None:
    data = [datum(2, weights=[1.0, 1.0], rewards=[1.0])]
    for loss in (get_loss("cross_entropy"), get_loss(summed)):
        bound = loss.prepare(data)
        bound.check()
        assert bound.top_k == 0
    with pytest.raises(UnknownInput, match="cross_entropy does not read 'rewards'"):
        get_loss("cross_entropy").prepare(data).check(strict=True)
