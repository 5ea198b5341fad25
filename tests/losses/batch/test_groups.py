"""Datums that belong together by the key `group`: their sums, the losses that couple them, and where these go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss, register_loss
from lossbook.datums.errors import LabelError, LossContractError, ShapeError, TraceError
from lossbook.losses import Seqs, unregister_loss
from lossbook.losses.batch.groups import DatumGroups, joined, units_of
from lossbook.losses.reductions import coarsest


def datum(group: Any, label: float = 1.0, weight: float = 1.0) -> Datum:
    return Datum(ModelInput.from_ints([1]), {"target_tokens": [1], "weights": [weight], "label": label, "group": group})


def values_of(scores: Sequence[float]) -> dict[str, list[Tensor]]:
    return {"values": [torch.tensor([s], dtype=torch.float64) for s in scores]}


@given(st.lists(st.integers(-2, 3), max_size=8))
def test_groups_are_numbered_by_their_first_datum(ids: list[int]) -> None:
    groups = DatumGroups(ids)
    numbers = {one: i for i, one in enumerate(dict.fromkeys(ids))}
    assert groups.index.tolist() == [numbers[one] for one in ids]
    assert groups.sizes == [ids.count(one) for one in numbers]
    values = torch.arange(len(ids), dtype=torch.float64)
    lists = groups.lists(values, -1)
    assert [[x for x in row if x >= 0] for row in lists.tolist()] == [
        [float(i) for i, other in enumerate(ids) if other == one] for one in numbers
    ]
    assert torch.equal(groups.flat(lists), values)
    assert torch.equal(groups.mask, lists >= 0)


def test_sums_means_and_shares_of_a_group() -> None:
    groups = DatumGroups([5, 2, 5])
    values = torch.tensor([1.0, 2.0, 3.0])
    assert groups.sum(values).tolist() == [4, 2]
    assert groups.mean(values).tolist() == [2, 2]
    assert groups.max(torch.tensor([-3, -2, -1])).tolist() == [-1, -2]
    assert groups.logsumexp(torch.tensor([2.0, 3.0, 6.0]).log()).exp().tolist() == pytest.approx([8, 3])
    assert groups.log_softmax(torch.tensor([2.0, 3.0, 6.0]).log()).exp().tolist() == pytest.approx([0.25, 1, 0.75])
    assert groups.broadcast(torch.tensor([7.0, 8.0])).tolist() == [7, 8, 7]
    assert groups.sum(torch.tensor([True, True, True])).tolist() == [2, 1], "booleans are counted"
    for wrong in (torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ShapeError, match="one value per datum, of which there are 3"):
            groups.lists(wrong, 0)
    with pytest.raises(ShapeError, match="one value per group, of which there are 2"):
        groups.broadcast(torch.ones(3))


def test_a_pair_joins_the_groups_of_its_datums() -> None:
    assert joined(6, [0, 1, 2, 0, 3, 3], pairs=False) == [[0, 3], [1], [2], [4, 5]]
    assert joined(6, [0, 1, 2, 0, 3, 3], pairs=True) == [[0, 1, 2, 3], [4, 5]]
    assert joined(0, [], pairs=True) == []


def test_only_losses_over_groups_have_units_and_pairs_of_a_mixture_join_them() -> None:
    listnet, pairs = get_loss("listnet").spec, get_loss("reward_bt").spec
    data = [datum(7), datum(-1), datum(7), datum(2)]
    assert units_of(data, [listnet]) == [[0, 2], [1], [3]]
    assert units_of(data, [listnet, pairs]) == [[0, 1, 2, 3]]
    assert units_of([*data, datum(5)], [pairs, listnet]) == [[0, 1, 2, 3], [4]], "a last datum without a partner"
    assert units_of(data, [pairs, get_loss("rank_bce").spec]) is None
    assert joined(2, [0, 1], pairs=True) == [[0, 1]]
    assert joined(3, [0, 1, 2], pairs=True) == [[0, 1], [2]]


def test_a_group_lies_between_a_pair_and_the_batch() -> None:
    assert coarsest("pair", "group") == coarsest("group", "token") == "group"
    assert coarsest("batch", "group") == "batch"
    mixture = get_loss("listnet") + get_loss("rank_bce")
    assert (get_loss("adr_mse").couples, mixture.couples) == ("group", "group")


def test_the_mean_is_over_groups_with_a_datum_that_counts() -> None:
    loss = get_loss("listnet")
    data = [datum(0), datum(0, 0.0), datum(3, weight=0.0), datum(4), datum(4, weight=0.0)]
    assert float(loss.count(data)) == 2
    assert get_loss("listnet", reduction="sum").count(data).values == (None,)
    shares = [loss.count(data[:2]), loss.count(data[2:])]
    assert sum(shares) == loss.count(data)
    value, _ = loss(data, values_of([0.0, 0.0, 9.0, 1.0, 9.0]))
    alone, _ = loss(data[:2], values_of([0.0, 0.0]))
    assert float(value) == pytest.approx(float(alone) / 2), "a group of one costs nothing here"


def test_an_id_is_an_integer_told_apart_from_the_next() -> None:
    for wrong in (0.5, float(2**24 + 1)):
        with pytest.raises(LabelError, match=r"group of datum 0 is .*: give an integer"):
            get_loss("listnet").check([datum(wrong), datum(1)])
    big = [datum(2**40), datum(2**40 + 1)]
    assert float(get_loss("listnet").count(big)) == 2
    get_loss("listnet").check([datum(2.0), datum(2)])


def test_tensors_are_grouped_by_row() -> None:
    ids, labels = [4, 1, 4, 1], [1.0, 0.0, 0.0, 2.0]
    scores = torch.tensor([[9.0, 0.5], [9.0, 1.0], [9.0, -1.0], [9.0, 0.0]], dtype=torch.float64)
    loss = get_loss("lambda_loss")
    value, metrics = loss.on_tensors(
        values=scores,
        mask=torch.tensor([[0, 1]] * 4),
        label=torch.tensor(labels),
        group=torch.tensor(ids),
    )
    expected, same = loss([datum(g, y) for g, y in zip(ids, labels, strict=True)], values_of(scores[:, 1].tolist()))
    assert float(value) == pytest.approx(float(expected))
    assert metrics["ndcg"] == pytest.approx(same["ndcg"])
    with pytest.raises(LabelError, match="give an integer"):
        loss.on_tensors(
            values=scores, mask=torch.ones(4, 2), label=torch.tensor(labels), group=torch.tensor([0.5, 1, 1, 1])
        )


def test_groups_cannot_be_traced_or_read_by_other_losses() -> None:
    with pytest.raises(TraceError, match=r"reads the model's values|groups of datums"):
        get_loss("listnet").trace()

    @register_loss("grouped_logprobs", per="group")
    def grouped_logprobs(logprobs: Tensor, seqs: Seqs) -> Tensor:
        return -seqs.groups.sum(seqs.mean(logprobs))

    @register_loss("no_groups", per="datum")
    def no_groups(logprobs: Tensor, seqs: Seqs) -> Tensor:
        return seqs.groups.broadcast(logprobs)

    try:
        with pytest.raises(TraceError, match="it looks at groups of datums"):
            get_loss("grouped_logprobs", reduction="sum").trace()
        with pytest.raises(LossContractError, match='per="group" or couples="group"'):
            get_loss("no_groups")([datum(0)], [torch.tensor([-1.0])])
        value, _ = get_loss("grouped_logprobs")(
            [datum(1), datum(2), datum(1)], [torch.tensor([-float(i)]) for i in range(3)]
        )
        assert float(value) == 1.5
    finally:
        unregister_loss("grouped_logprobs")
        unregister_loss("no_groups")


def test_masked_datums_need_an_id_but_not_a_right_one() -> None:
    data = [datum(0), datum(np.nan, weight=0.0), datum(0, 0.0)]
    get_loss("listnet").check(data)
    assert float(get_loss("listnet").count(data)) == 1
