"""Groups of datums that a loss must see together: micro-batches and ranks' shares keep them whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lossbook.losses.batch.groups import joined
from lossbook.trainer.packing.micro_batches import PrefixGroup, plan_micro_batches, prefix_groups_of
from lossbook.trainer.packing.shares import plan_shares


@st.composite
def calls(draw: Any) -> tuple[list[np.ndarray], list[list[int]], int | None]:
    """Sequences of which those of one group begin alike, their units, and a budget of tokens."""
    ids = draw(st.lists(st.integers(0, 5), min_size=1, max_size=14))
    heads = {one: np.full(draw(st.integers(1, 30)), one) for one in sorted(set(ids))}
    tails = [draw(st.integers(1, 20)) for _ in ids]
    sequences = [
        np.concatenate([heads[one], 100 + np.full(n, i)]) for i, (one, n) in enumerate(zip(ids, tails, strict=True))
    ]
    return sequences, joined(len(ids), ids, pairs=False), draw(st.one_of(st.none(), st.integers(1, 200)))


@given(call=calls(), ranks=st.integers(1, 4), padded=st.booleans(), shares_prefixes=st.booleans())
def test_a_unit_is_never_cut(call: Any, ranks: int, padded: bool, shares_prefixes: bool) -> None:
    sequences, units, tokens = call
    prefixes = prefix_groups_of(sequences, "group", units) if shares_prefixes and not padded else ()
    lengths = [len(one) for one in sequences]
    options: dict[str, Any] = {
        "tokens": tokens,
        "pairs": False,
        "padded": padded,
        "prefix_groups": prefixes,
        "units": units,
    }
    shares = plan_shares(lengths, ranks=ranks, **options)
    cuts = [cut for own in shares for cut in own if cut]
    assert sorted(i for cut in cuts for i in cut) == list(range(len(lengths)))
    assert all(sum(bool(set(unit) & set(cut)) for cut in cuts) == 1 for unit in units)
    alone = plan_micro_batches(lengths, **options)
    for cut in alone if tokens is not None else ():
        own = [lengths[i] for i in cut]
        whole = [unit for unit in units if set(unit) <= set(cut)]
        if len(whole) > 1 and not prefixes:
            assert (len(own) * max(own) if padded else sum(own)) <= tokens


def test_a_unit_counts_the_prefix_of_all_its_datums_once() -> None:
    query, other = np.arange(20), np.arange(100, 130)
    sequences = [np.concatenate([query, [i]]) for i in (1, 2)] + [np.concatenate([other, [3]])]
    groups = prefix_groups_of(sequences, "group", [[0, 1], [2]])
    assert groups == [PrefixGroup((0, 1), 20), PrefixGroup((2,), 0)]
    assert prefix_groups_of(sequences, "group", [[0, 2], [1]])[0].prefix == 0
    # 22 tokens and 31 fit into 53, not into 52
    for tokens, expected in ((53, 1), (52, 2)):
        cuts = plan_micro_batches(
            [21, 21, 31], tokens=tokens, pairs=False, padded=False, prefix_groups=groups, units=[[0, 1], [2]]
        )
        assert len(cuts) == expected
