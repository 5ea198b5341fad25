"""The helper `seqs`: sums, means and pairs over tokens that lie packed in one row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.errors import ShapeError
from lossbook.losses import Seqs

lengths = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(lengths=lengths, data=st.data())
@settings(max_examples=40)
def test_seqs_sums_and_means_are_those_of_each_datum_alone(lengths: list[int], data: st.DataObject) -> None:
    rows = [data.draw(st.lists(st.integers(-9, 9).map(float), min_size=n, max_size=n)) for n in lengths]
    mask = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    flat = torch.tensor([x for row in rows for x in row])
    seqs = Seqs(lengths)
    assert seqs.count == len(lengths)
    assert seqs.sum(flat).tolist() == [sum(row) for row in rows]
    assert seqs.plain_sum(flat).tolist() == [sum(row) for row in rows]
    assert seqs.mean(flat).tolist() == pytest.approx([sum(row) / len(row) for row in rows])
    chosen = [[x for x, keep in zip(row, kept, strict=True) if keep] for row, kept in zip(rows, mask, strict=True)]
    flat_mask = torch.tensor([keep for kept in mask for keep in kept])
    expected = [sum(row) / len(row) if row else 0.0 for row in chosen]
    assert seqs.mean(flat, flat_mask).tolist() == pytest.approx(expected)
    assert [part.tolist() for part in seqs.split(flat)] == rows
    assert seqs.broadcast(seqs.sum(flat)).tolist() == [sum(row) for row in rows for _ in row]


def test_seqs_reduce_each_of_k_columns_on_its_own() -> None:
    seqs = Seqs([2, 1])
    assert seqs.sum(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])).tolist() == [[3, 30], [3, 30]]


def test_a_masked_mean_does_not_see_what_the_mask_leaves_out() -> None:
    means = Seqs([3]).mean(torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True]))
    assert means.tolist() == [2.0]


def test_with_weights_a_sum_weighs_tokens_and_a_mean_divides_by_their_weights() -> None:
    seqs = Seqs([2, 1], weights=torch.tensor([1.0, 3.0, 0.5]))
    values = torch.tensor([1.0, 2.0, 4.0])
    assert seqs.sum(values).tolist() == [7, 2]
    assert seqs.mean(values).tolist() == [7 / 4, 4]
    assert seqs.plain_sum(values).tolist() == [3, 4]


def test_values_a_position_cannot_be_weighed_by_weights_a_target() -> None:
    seqs = Seqs([2], weights=torch.ones(2, 3))
    assert seqs.sum(torch.ones(2, 3)).tolist() == [[2, 2, 2]]
    with pytest.raises(ShapeError) as caught:
        seqs.sum(torch.ones(2))
    assert str(caught.value) == (
        "values of shape [2] cannot be weighed by weights of shape [2, 3]: return one value for each of the K targets of "
        "a position"
    )


def test_pairs_are_neighbours_and_need_an_even_number() -> None:
    chosen, rejected = Seqs([1, 1, 1, 1]).pairs(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (chosen.tolist(), rejected.tolist()) == ([1, 3], [2, 4])
    with pytest.raises(ShapeError, match=r"^pairs need one value for each of an even number of datums, got 3 of 3$"):
        Seqs([1, 1, 1]).pairs(torch.ones(3))
    with pytest.raises(ShapeError, match=r"got 4 of 2$"):
        Seqs([2, 2]).pairs(torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int8, torch.uint8])
def test_sums_and_means_of_booleans_and_integers_count_them(dtype: torch.dtype) -> None:
    values = torch.tensor([1, 0, 1, 1, 0]).to(dtype)
    seqs = Seqs([2, 3])
    assert seqs.sum(values).tolist() == seqs.plain_sum(values).tolist() == [1, 2]
    assert seqs.mean(values).tolist() == pytest.approx([0.5, 2 / 3])
    weighted = Seqs([2, 3], weights=torch.tensor([0.5, 1, 0.25, 0.5, 1]))
    assert weighted.sum(values).tolist() == [0.5, 0.75]
    assert weighted.mean(values).tolist() == pytest.approx([0.5 / 1.5, 0.75 / 1.75])
    assert seqs.mean(values, values).tolist() == [1, 1]  # a mask of integers says which


@given(lengths=lengths, data=st.data())
@settings(max_examples=40)
def test_a_type_never_changes_a_sum_or_a_mean(lengths: list[int], data: st.DataObject) -> None:
    flat = torch.tensor([data.draw(st.integers(0, 1)) for _ in range(sum(lengths))])
    weights = data.draw(st.sampled_from([None, torch.arange(len(flat)) / 8 + 0.125]))
    seqs = Seqs(lengths, weights=weights, dtype=torch.float64)
    for dtype in (torch.bool, torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float32):
        for gather in (seqs.sum, seqs.mean, seqs.plain_sum):
            assert gather(flat.to(dtype)).tolist() == gather(flat.double()).tolist()


def test_a_sum_of_half_precision_does_not_stand_still() -> None:
    assert Seqs([1000]).sum(torch.ones(1000, dtype=torch.bfloat16)).tolist() == [1000]  # in bfloat16 256 + 1 is 256


@pytest.mark.parametrize("method", ["sum", "plain_sum", "mean", "last", "split", "broadcast"])
def test_values_of_another_length_are_refused(method: str) -> None:
    counts = (
        "one value per datum, of which there are 2"
        if method == "broadcast"
        else "one value per token, of which there are 5"
    )
    for size in (4, 6):
        with pytest.raises(ShapeError, match=f"^seqs reads {counts}, not a tensor of .{size}.$"):
            getattr(Seqs([2, 3]), method)(torch.ones(size))


def test_a_datum_without_tokens_has_no_last_one() -> None:
    with pytest.raises(ShapeError, match=r"^datum 0 has no token, so none is its last$"):
        Seqs([0, 2]).last(torch.ones(2))
    with pytest.raises(ShapeError, match=r"^datum 1 has no token, so none is its last$"):
        Seqs([2, 0, 0]).last(torch.ones(2))
    assert Seqs([2, 1, 3]).last(torch.arange(6.0)).tolist() == [1, 2, 5]


def test_weights_a_position_weigh_each_of_its_columns() -> None:
    seqs = Seqs([2, 1], weights=torch.tensor([1.0, 3.0, 0.5]))
    assert seqs.sum(torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])).tolist() == [[7, 70], [2, 20]]
    assert Seqs([1], weights=torch.tensor([2.0])).sum(torch.ones(1, 2)).tolist() == [[2, 2]]


@pytest.mark.parametrize("method", ["sum", "plain_sum", "last", "split", "broadcast"])
def test_one_number_for_all_tokens_is_refused(method: str) -> None:
    with pytest.raises(ShapeError, match=r", not a tensor of \[\]$"):
        getattr(Seqs([1]), method)(torch.ones(()))


def test_beside_another_tensor_sums_are_of_its_precision_at_least() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    seqs = Seqs([1], weights=torch.ones(1))
    assert seqs.to(third).sum(torch.ones(1)).dtype == torch.float64
    assert seqs.to(third).to(torch.ones(1)).sum(third.float()).dtype == torch.float32
    assert seqs.to(third).sum(third).tolist() == third.tolist()
    assert seqs.to(torch.ones(1)) is seqs


def test_lengths_in_a_list_are_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):  # as a script might set its default
        seqs = Seqs([2, 1])
    assert seqs.lengths.device.type == seqs.index.device.type == "cpu"
    assert seqs.index.tolist() == [0, 0, 1]


def test_lengths_are_where_they_are_wanted() -> None:
    seqs = Seqs([2, 1], device=torch.device("meta"), weights=torch.ones(3))
    assert seqs.lengths.device.type == seqs.index.device.type == "meta"
    assert seqs.index.shape == (3,)
    moved = Seqs([2, 1], weights=torch.ones(3)).to(torch.ones(3, device="meta"))
    assert moved.sum(torch.ones(3, device="meta")).shape == (2,)
    assert [one.shape for one in moved.split(torch.ones(3, device="meta"))] == [(2,), (1,)]
