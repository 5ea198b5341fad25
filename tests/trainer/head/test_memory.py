"""What the head holds at its peak, counted in bytes of live tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from lossbook.trainer.head import logprobs as head_module
from lossbook.trainer.head.logprobs import Head, linear_logprobs

WIDTH, VOCABULARY, TILE = 8, 3000, 4096
HEAD_GRADIENT = 4 * VOCABULARY * WIDTH


def in_memory(value: Any) -> Iterator[Tensor]:
    """The tensors that hold the numbers of a tensor: what a shard wraps, and nothing for shapes alone."""
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from in_memory(getattr(value, name))
    elif isinstance(value, Tensor) and value.device.type != "meta":
        yield value


class LiveBytes(TorchDispatchMode):
    """The most bytes of storages that were alive at once, of those made since it was entered."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in itertools.chain.from_iterable(map(in_memory, tree_leaves(result))):
            if tensor.untyped_storage().data_ptr() not in self._known:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", TILE)
    monkeypatch.setitem(head_module.TILE_ROWS, "cpu", 32)


def peak(positions: int, strategy: Any, *, trains_head: bool = True, **options: Any) -> int:
    """Bytes beyond the inputs, from before the forward to after the backward."""
    hidden = torch.randn(positions, WIDTH, requires_grad=True)
    head = Head(torch.randn(VOCABULARY, WIDTH, requires_grad=trains_head))
    targets = torch.randint(VOCABULARY, (positions,))
    known = torch.ones(positions)
    if strategy == "known-gradient":
        options["known_gradient"] = known
    with LiveBytes(hidden, head.weight, targets, known) as live:
        outputs = linear_logprobs(hidden, head, targets, head_strategy=strategy, **options)
        (outputs.logprobs * known).sum().backward()
    return live.peak


def per_position(small: int, large: int, rows: int) -> float:
    """Bytes that each of `rows` further positions adds."""
    return (large - small) / rows


@pytest.mark.parametrize("trains_head", [True, False], ids=["trained head", "frozen head"])
def test_recompute_holds_a_few_tiles_and_a_few_numbers_per_position(trains_head: bool):
    small, large = (peak(positions, "recompute", trains_head=trains_head) for positions in (64, 320))
    # the hidden states' gradient and its sum, then outputs, their gradients and marks of which rows have one
    assert per_position(small, large, 256) < 2 * 4 * WIDTH + 120
    assert small < HEAD_GRADIENT * trains_head + 64 * (2 * 4 * WIDTH + 120) + 8 * TILE


def test_the_real_tiles_keep_recompute_within_64_mib():
    assert 8 * head_module.TILE_BYTES["cpu"] <= 64 * 2**20


@pytest.mark.slow
def test_keep_holds_the_product_once():
    small, large = (peak(positions, "keep") for positions in (64, 640))
    assert 4 * VOCABULARY <= per_position(small, large, 576) < 4 * VOCABULARY + 2 * 4 * WIDTH + 120


@pytest.mark.slow
def test_keep_in_half_precision_holds_half():
    small, large = (peak(positions, "keep", kept_dtype=torch.float16) for positions in (64, 640))
    offsets = 4 * VOCABULARY * 4 * 32 / TILE  # one number per row and tile
    assert per_position(small, large, 576) < 2 * VOCABULARY + offsets + 2 * 4 * WIDTH + 120


@pytest.mark.slow
def test_known_gradient_holds_no_more_of_the_product_than_the_budget_whatever_the_number_of_positions():
    budget = 16 * 4 * VOCABULARY
    small, large = (peak(positions, "known-gradient", head_memory=budget) for positions in (64, 640))
    assert per_position(small, large, 576) < 2 * 4 * WIDTH + 120
    assert small < budget + HEAD_GRADIENT + 64 * (2 * 4 * WIDTH + 120) + 8 * TILE


def test_a_bfloat16_heads_gradient_is_summed_without_a_float32_copy_of_it():
    hidden = torch.randn(64, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    head = Head(torch.randn(VOCABULARY, WIDTH, dtype=torch.bfloat16).requires_grad_())
    targets = torch.randint(VOCABULARY, (64,))
    with LiveBytes(hidden, head.weight, targets) as live:
        linear_logprobs(hidden, head, targets, head_strategy="recompute").logprobs.sum().backward()
    assert live.peak < HEAD_GRADIENT / 2 + 64 * (2 * 4 * WIDTH + 120) + 8 * TILE
