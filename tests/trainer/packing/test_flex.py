"""flex_attention over a packed row: the numbers of attention block by block, and the tiles that it may leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.trainer.packing import layouts
from lossbook.trainer.packing.attention import Layout
from lossbook.trainer.packing.block_attention import BlockAttention
from lossbook.trainer.packing.flex import TILE, FlexAttention
from lossbook.trainer.packing.rows import PackedRow, pack_row

from .test_attention import PACKED, SEQUENCES, decoder, gradients
from .test_rows import batches

WINDOWS = st.sampled_from([None, 1, 2, 5, 24, 100, 400])


@st.composite
def long_rows(draw: st.DrawFn) -> PackedRow:
    """Rows of several tiles: sequences that share a prompt, and others."""
    prompt = np.arange(draw(st.sampled_from([0, 20, 127, 128, 129, 300])))
    shared = [np.append(prompt, np.full(n, 1000 + n)) for n in draw(st.lists(st.integers(1, 300), max_size=4))]
    return pack_row([*shared, *(np.arange(n) for n in draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))])


def attended(layout: Layout, inputs: list[Tensor], window: int | None) -> Tensor:
    return layout.to(torch.device("cpu")).attend(*inputs, dropout=0.0, scaling=None, window=window)


def normal(tokens: int, group: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    heads = (4, 4 // group, 4 // group)
    return [torch.randn(tokens, each, 16, dtype=dtype, requires_grad=dtype == torch.float64) for each in heads]


@settings(max_examples=30)
@given(sequences=batches().filter(len), share=st.booleans(), group=st.sampled_from([1, 2, 4]), window=WINDOWS)
def test_who_sees_whom_is_as_in_blocks(
    sequences: list[np.ndarray], share: bool, group: int, window: int | None
) -> None:
    row = pack_row(sequences, share=share)
    inputs = normal(len(row.tokens), group, torch.float64)
    results: list[list[Tensor]] = []
    for kind in (FlexAttention, BlockAttention):
        output = attended(kind(row.blocks), inputs, window)
        factors = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        results.append([output, *torch.autograd.grad(output, inputs, factors)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(row=long_rows(), window=WINDOWS)
def test_the_tiles_that_are_computed_are_those_in_which_a_query_sees_a_key(row: PackedRow, window: int | None) -> None:
    layout = FlexAttention(row.blocks).to(torch.device("cpu"))
    seen = layout.dense(window).numpy()
    count = -(-len(seen) // TILE)
    padded = np.zeros((count * TILE, count * TILE), dtype=bool)
    padded[: len(seen), : len(seen)] = seen
    expected = padded.reshape(count, TILE, count, TILE).any((1, 3))
    np.testing.assert_array_equal(layout.tiles(window), expected)


@pytest.mark.parametrize("config", PACKED.values(), ids=PACKED.keys())
def test_hidden_states_and_gradients_of_a_model_are_those_of_blocks(config: Any) -> None:
    model = decoder(config)
    results = [layouts.sharing(model, SEQUENCES, path).run(model) for path in ("flex", "blocks")]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    ours, theirs = (gradients(model, hidden) for hidden in results)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12 * float(gradient.abs().max()) + 1e-15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_flex_attention_takes_the_mask_and_its_tiles() -> None:
    """Forward only, and compiled for each length: torch 2.13 has no backward for CPUs, and writes no C++ for any length."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    prompt = np.arange(130)
    for lengths in ((3, 150), (200,)):
        row = pack_row([np.append(prompt, np.full(n, 1000 + n)) for n in lengths] + [np.arange(200, 390)])
        inputs = normal(len(row.tokens), 2, torch.float32)
        for window in (None, 40):
            layout = FlexAttention(row.blocks).to(torch.device("cpu"))
            q, k, v = (x.transpose(0, 1)[None] for x in inputs)
            output = compiled(q, k, v, block_mask=layout.mask(window), enable_gqa=True)[0].transpose(0, 1)
            expected = attended(BlockAttention(row.blocks), inputs, window)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
