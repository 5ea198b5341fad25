"""Every suffix of an id equals its NumPy version, on drawn data; and there is one of each suffix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import get_loss
from lossbook.losses import SUFFIXES
from lossbook.losses.testing import strategies

from ..reference import corrections, evaluated

TOLERANCE = 1e-9


@pytest.mark.parametrize("suffix", corrections.SUFFIXES)
@settings(max_examples=3)
@given(data=st.data())
def test_a_suffix_gives_the_numbers_of_its_numpy_version(suffix: str, data: st.DataObject) -> None:
    reference, own = corrections.SUFFIXES[suffix]
    loss = get_loss(f"reinforce+{suffix}", reduction="token-mean", **own)
    drawn = data.draw(strategies.datums(loss))
    outputs = data.draw(strategies.outputs(loss, drawn))
    arrays = {name: [row.numpy() for row in rows] for name, rows in outputs.items()}
    expected, slopes = evaluated(reference, drawn, arrays, per="token", reduction="token-mean", **own)
    leaves = {name: [row.clone().requires_grad_() for row in rows] for name, rows in outputs.items()}
    value, _ = loss(drawn, leaves)
    assert float(value.detach()) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    gradients = torch.autograd.grad(value, leaves["logprobs"])
    for mine, slope in zip(gradients, slopes["logprobs"], strict=True):
        torch.testing.assert_close(mine, torch.from_numpy(slope), rtol=TOLERANCE, atol=TOLERANCE)


def test_every_suffix_has_a_numpy_version_or_is_one_of_them_divided_by_its_mean() -> None:
    others = {name for name in SUFFIXES if name.endswith("_normalized")} | {"off_policy_mask"}
    assert set(corrections.SUFFIXES) == set(SUFFIXES) - others
