"""What `lossbook doctor plan` says of ranks, against ranks: bytes that they hold, collectives and their bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossbook as lb
from lossbook.cookbook.doctor.plan.memory import Setup, memory_of
from lossbook.cookbook.doctor.plan.outline import Sizes, outline, trained
from lossbook.cookbook.doctor.plan.shape import shape_of
from lossbook.cookbook.doctor.plan.traffic import traffic_of
from lossbook.datums.types import AdamParams
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.ranks import Ranks
from lossbook.trainer.shards import local
from lossbook.trainer.training.model_trainer import ModelTrainer

from ..ranks.processes import RankProcesses
from .models import VOCABULARY, sharded

SIZES = Sizes(hidden=64, layers=6, heads=4, kv_heads=2, mlp=192, vocabulary=VOCABULARY)
OPTIONS = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6, "max_position_embeddings": 2048}


class Held(TorchDispatchMode):
    """The most bytes that were held at one time by what operations made, as large as it was then; and collectives."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, StorageWeakRef] = {}
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self.most = 0
        self.collectives: Counter[str] = Counter()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if str(func).startswith("c10d."):
            name = str(func).split(".")[1].strip("_")
            self.collectives[name] += 1
            self.made[name] += tree_leaves(args)[0].nbytes  # what it writes comes first
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and not (
                tensor.is_meta or isinstance(tensor, DTensor)
            ):  # it has a shard's memory
                ref = StorageWeakRef(tensor.untyped_storage())
                self._storages.setdefault(ref.cdata, ref)
        self._storages = {key: ref for key, ref in self._storages.items() if not ref.expired()}
        self.most = max(self.most, sum(map(_bytes, self._storages)))
        return results


def _bytes(weak: int) -> int:
    """Bytes of a storage that something holds; FSDP empties some, and fills them again."""
    storage = torch.UntypedStorage._new_with_weak_ptr(weak)
    return 0 if storage is None else storage.nbytes()


@dataclass
class Measured:
    """Of one rank: bytes of weights and moments, and the most that a forward_backward held, with a micro-batch on each rank.

    collectives, made: of that call, and the bytes of what they wrote
    """

    weights: int
    moments: int
    most: int
    collectives: dict[str, int]
    made: dict[str, int]


def step(ranks: Ranks, kind: str, checkpoint: bool, tokens: int) -> Measured:
    datums = [lb.datum_from_tokens_weights([i % 251 for i in range(tokens + 1)], [1.0] * (tokens + 1))] * ranks.size
    with Held() as held:
        model = sharded(ranks, kind, **OPTIONS)
        trainer = ModelTrainer(model, EngineSettings(tokens_per_micro_batch=tokens, checkpoint_layers=checkpoint))
        trainer.forward_backward(datums, lb.get_loss("focal"), "mean")
        trainer.optim_step(AdamParams(), None)  # makes moments
        held.begin()
        trainer.forward_backward(datums, lb.get_loss("focal"), "mean")
        most, collectives, made = held.most, dict(held.collectives), dict(held.made)
        trainer.optim_step(AdamParams(), None)
    weights = sum(local(p).nbytes for p in model.module.parameters())
    moments = sum(t.nbytes for name, t in trainer.optimizer.state_tensors().items() if not name.startswith("step."))
    return Measured(weights, moments, most, collectives, made)


@pytest.mark.parametrize(
    ("size", "checkpoint", "tokens"),
    [
        pytest.param(2, False, 64, id="2 ranks"),
        pytest.param(2, True, 64, id="2 ranks, layers run again", marks=pytest.mark.slow),
        pytest.param(4, False, 4, id="4 ranks, more weights than activations", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["untied", pytest.param("lora", marks=pytest.mark.slow)])
def test_ranks_hold_and_send_what_the_plan_says(
    ranks: RankProcesses, kind: str, size: int, checkpoint: bool, tokens: int
) -> None:
    """Weights, moments and the number of collectives exactly, bytes sent within 1 %, the most that is held within -5 and +15 %."""
    shape = shape_of(trained(outline(SIZES, torch.float32), 4 if kind == "lora" else None))
    setup = Setup(size, tokens, checkpoint, on_gpu=False)
    memory, traffic = memory_of(shape, setup), traffic_of(shape, setup)
    measured = ranks.run(step, kind, checkpoint, tokens, size=size)
    assert max(one.weights for one in measured) == memory.weights
    assert max(one.moments for one in measured) == memory.moments
    for one in measured:
        assert 0.95 <= memory.training / one.most <= 1.15, f"{memory.training:,} planned, {one.most:,} held"
        assert one.collectives["allgather_base"] == traffic.gathers
        assert one.collectives.get("reduce_scatter_base", 0) == traffic.scatters
        others = (size - 1) / size
        assert one.made["allgather_base"] * others == pytest.approx(traffic.gathered_bytes, rel=0.01)
        assert one.made.get("reduce_scatter_base", 0) * (size - 1) == pytest.approx(traffic.scattered_bytes, rel=0.01)
        if kind == "lora":
            assert one.collectives["allreduce"] == 1
            assert 2 * one.made["allreduce"] * others == traffic.call_bytes
