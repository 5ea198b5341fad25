"""The plan's bytes against those that a training step takes in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossbook as lb
from lossbook.cookbook.doctor.plan.memory import Setup, memory_of
from lossbook.cookbook.doctor.plan.outline import outline, trained
from lossbook.cookbook.doctor.plan.shape import shape_of
from lossbook.datums.types import AdamParams
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.optim.adamw import AdamW

TOKENS = 2048


class Peak(TorchDispatchMode):
    """The most bytes that were held at one time by what operations returned."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                self._sizes[ref.cdata] = (ref, storage.nbytes())
        self._sizes = {key: (ref, size) for key, (ref, size) in self._sizes.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self._sizes.values()))
        return results


@pytest.mark.parametrize("checkpoint", [False, True], ids=["layers keep all", "layers run again"])
@pytest.mark.parametrize("rank", [None, 8], ids=["all weights", "adapters"])
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, id="float32", marks=pytest.mark.slow), pytest.param(torch.bfloat16, id="bfloat16")],
)
def test_a_step_takes_what_the_plan_says(dtype: torch.dtype, rank: int | None, checkpoint: bool) -> None:
    """Weights and moments to the byte; the most that a step takes within -5 and +30 %."""
    plan = memory_of(shape_of(trained(outline("tiny", dtype), rank)), Setup(1, TOKENS, checkpoint, on_gpu=False))
    model = load_model("tiny", device="cpu", dtype=dtype)
    if rank is None:
        model.train_all_weights()
    else:
        add_lora(model, rank=rank, seed=0)
    engine = Engine(model, EngineSettings(tokens_per_micro_batch=TOKENS, checkpoint_layers=checkpoint))
    datum = lb.datum_from_tokens_weights([i % 251 for i in range(TOKENS + 1)], [1.0] * (TOKENS + 1))
    with Peak() as peak:
        engine.forward_backward([datum], lb.get_loss("focal"))
    optimizer = AdamW(model.trainable())
    optimizer.step(AdamParams())
    moments = sum(t.nbytes for name, t in optimizer.state_tensors().items() if not name.startswith("step."))

    assert plan.weights == sum(p.nbytes for p in model.module.parameters())
    assert plan.moments == moments
    step = plan.training - plan.at_rest
    assert 0.95 <= step / peak.most <= 1.3, f"{step:,} planned, {peak.most:,} measured"
