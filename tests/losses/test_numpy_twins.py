"""Every loss equals its second, independent version in NumPy: value and gradient, in float64, on drawn data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import describe_loss
from lossbook.losses import REDUCTIONS
from lossbook.losses.testing import strategies

from . import reference
from .cases import shipped, with_needed
from .test_reference import INPUTS

TOLERANCE = 1e-9
#: Losses with a reference of their own in test_reference.py, whose gradients are worked by hand.
BY_HAND = {*INPUTS, "dpo", "info_nce"}


def cases(*, reductions: bool) -> list[Any]:
    """(name, settings): the defaults, the variants of the family, and where asked for every other reduction."""
    params = []
    for name in reference.REFERENCES:
        card = describe_loss(name)
        variants = [{}, *reference.VARIANTS.get(name, [])]
        others = [other for other in REDUCTIONS[card.per] if reductions and other != card.reduction]
        # a reduction knows nothing of a loss: the one over prompts is compared once
        variants += [{"reduction": one} for one in others if one != "prompt-mean" or name == "cross_entropy"]
        for variant in variants:
            shown = ",".join(f"{key}={value}" for key, value in variant.items())
            params.append(pytest.param(name, variant, id=f"{name}({shown})"))
    return params


@pytest.mark.parametrize(("name", "config"), cases(reductions=False))
@given(data=st.data())
@settings(max_examples=3)
def test_a_loss_equals_its_numpy_version(name: str, config: dict[str, Any], data: st.DataObject) -> None:
    compare(name, config, data)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), cases(reductions=True))
@given(data=st.data())
@settings(max_examples=8)
def test_a_loss_equals_its_numpy_version_on_many_examples(
    name: str, config: dict[str, Any], data: st.DataObject
) -> None:
    compare(name, config, data)


def compare(name: str, config: dict[str, Any], data: st.DataObject) -> None:
    """Value and gradient of drawn datums are those of the NumPy version."""
    loss = with_needed(name, **config)
    drawn = data.draw(strategies.datums(loss))
    outputs = data.draw(strategies.outputs(loss, drawn))
    expected, slopes = reference.evaluated(
        reference.REFERENCES[name],
        drawn,
        {key: [t.numpy() for t in tensors] for key, tensors in outputs.items()},
        per=loss.spec.per,
        candidates=loss.spec.candidates,
        reduction=loss.reduction,
        norm_length=loss.norm_length,
        **loss.settings,
    )
    leaves = {key: [t.clone().requires_grad_() for t in tensors] for key, tensors in outputs.items()}
    value, _ = loss(drawn, leaves)
    assert float(value.detach()) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    flat = [leaf for tensors in leaves.values() for leaf in tensors]
    gradients = torch.autograd.grad(value, flat, allow_unused=True)
    wanted = [slope for rows in slopes.values() for slope in rows]
    for leaf, gradient, slope in zip(flat, gradients, wanted, strict=True):
        own = np.zeros(leaf.shape) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(own, slope, rtol=TOLERANCE, atol=TOLERANCE)


def test_every_loss_that_ships_has_a_numpy_version() -> None:
    missing = set(shipped()) - set(reference.REFERENCES) - BY_HAND
    assert not missing, f"write {', '.join(sorted(missing))} a second time in tests/losses/reference/"
