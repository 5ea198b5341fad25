"""`lossbook doctor plan`: what training a model on some number of GPUs takes, before any GPU is rented.

    lossbook doctor plan --model llama-8b --gpus 8
    lossbook doctor plan --model llama-70b --gpus 64 --all-weights --checkpoint-layers
    lossbook doctor plan --hidden 2048 --layers 24 --heads 16 --kv-heads 8 --mlp 5632 --vocabulary 50000 --gpus 8 --all-weights

Memory is worked out for the rank that holds most. By default a fifth of the bandwidth and six tenths of the operations of the
data sheets are taken as out of reach, and a tenth of the memory is left to CUDA, nccl and gaps.
"""

from __future__ import annotations

import functools
import json as json_format
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....datums.errors import ConfigError, did_you_mean
from ....trainer.choices import BaseWeights
from ...run.loggers import quiet_libraries
from ...settings.choices import Precision
from ...terminal import show
from .gpus import GPUS, HOST

if TYPE_CHECKING:
    from .outline import Sizes
    from .plan import Plan
    from .shape import Shape

#: Shares of the data sheets' operations and bandwidth that are reached by default, and of the memory that may be filled.
FLOPS_REACHED, BANDWIDTH_REACHED, MEMORY_USED = 0.4, 0.8, 0.9
#: Seconds that a collective takes beside its bytes.
LATENCY = 50e-6


def main(
    gpus: int,
    model: str | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    mlp: int | None = None,
    vocabulary: int | None = None,
    tied: bool = False,
    all_weights: bool = False,
    rank: int = 16,
    dtype: Precision = "bfloat16",
    base_weights: BaseWeights = "full",
    checkpoint_layers: bool = False,
    tokens_per_micro_batch: int = 16384,
    tensor_parallel: int = 1,
    length: int = 2048,
    gpu: str = "h100",
    gpus_per_host: int = HOST,
    memory: float | None = None,
    flops: float | None = None,
    bandwidth: float | None = None,
    json: bool = False,
) -> int:
    """Work out memory of a rank, communication and efficiency. The exit code is 1 when the plan does not fit.

    Args:
        gpus: number of GPUs, a worker on each.
        model: a folder with config.json, a hub id whose config.json is cached, llama-7b, llama-8b, llama-70b, or 'tiny'.
        hidden: instead of a model: width of a decoder of Llama's kind.
        layers: its layers.
        heads: its heads of queries.
        kv_heads: its heads of keys and values; as many as of queries by default.
        mlp: the width inside its MLP.
        vocabulary: its tokens.
        tied: its output head is the embedding.
        all_weights: train all weights instead of LoRA adapters.
        rank: rank of the LoRA adapters.
        dtype: dtype of products and frozen weights.
        base_weights: 4bit: frozen weights of the layers in 4 bits, on one GPU.
        checkpoint_layers: compute each layer again in the backward.
        tokens_per_micro_batch: most tokens that run together.
        tensor_parallel: GPUs that share each matrix.
        length: tokens of a usual sequence.
        gpu: a100, h100, h200, b200, l40s or rtx4090: where memory, operations and bandwidth are taken from.
        gpus_per_host: GPUs of a host; more than these go over the network.
        memory: GB of a GPU, instead.
        flops: TFLOPS that a GPU reaches, instead.
        bandwidth: GB per second that a GPU takes in during a collective over all GPUs, instead.
        json: print JSON instead.
    """
    quiet_libraries()
    asked = Asked(**{name: value for name, value in locals().items() if name in Asked.__dataclass_fields__})
    asked.check()
    from .report import as_json, as_text

    plan = asked.plan()
    if json:
        print(json_format.dumps(as_json(plan), indent=2))
    else:
        show(as_text(plan))
    return 0 if plan.fits else 1


@dataclass(frozen=True)
class Asked:
    """What the flags say, as `main` explains them."""

    gpus: int
    model: str | None = None
    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    mlp: int | None = None
    vocabulary: int | None = None
    tied: bool = False
    all_weights: bool = False
    rank: int = 16
    dtype: Precision = "bfloat16"
    base_weights: BaseWeights = "full"
    checkpoint_layers: bool = False
    tokens_per_micro_batch: int = 16384
    tensor_parallel: int = 1
    length: int = 2048
    gpu: str = "h100"
    gpus_per_host: int = HOST
    memory: float | None = None
    flops: float | None = None
    bandwidth: float | None = None

    def check(self) -> None:
        """Raise ConfigError for the first flag that cannot be meant."""
        for name in ("gpus", "rank", "tokens_per_micro_batch", "tensor_parallel", "length", "gpus_per_host"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is at least 1, not {getattr(self, name)}")
        for name in ("memory", "flops", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name} is a number above 0, not {value}")
        if self.gpu not in GPUS:
            raise ConfigError(
                f"--gpu is one of {', '.join(GPUS)}, not {self.gpu!r}.{did_you_mean(self.gpu, GPUS)} For another, "
                "give --memory, --flops and --bandwidth"
            )
        if self.base_weights == "4bit" and (self.all_weights or self.gpus > 1):
            other = (
                "--all-weights: they cannot be trained" if self.all_weights else "several GPUs: they are not sharded"
            )
            raise ConfigError(f"--base-weights 4bit does not go with {other}")
        if self.tensor_parallel > 1:
            raise ConfigError(
                "--tensor-parallel is not planned yet: leave it at 1. Training has it, --tensor-parallel K: of a layer's matrices "
                "and their activations a GPU then holds a K-th beside what is sharded, and K GPUs work on each micro-batch"
            )

    def plan(self) -> Plan:
        """The plan of what was asked. Raises ConfigError and ModelError where the model cannot be had."""
        from .memory import Setup
        from .plan import plan_for
        from .traffic import Speed

        gpu = GPUS[self.gpu]
        link = gpu.link if self.gpus <= self.gpus_per_host else min(gpu.link, gpu.network)
        speed = Speed(
            FLOPS_REACHED * gpu.flops if self.flops is None else 1e12 * self.flops,
            BANDWIDTH_REACHED * link if self.bandwidth is None else 1e9 * self.bandwidth,
            LATENCY,
        )
        limit = round(MEMORY_USED * (gpu.memory if self.memory is None else 1e9 * self.memory))
        setup = Setup(
            self.gpus, self.tokens_per_micro_batch, self.checkpoint_layers, four_bit=self.base_weights == "4bit"
        )
        return plan_for(self._shape(), setup, speed, limit, length=self.length)

    def _shape(self) -> Shape:
        from .outline import sizes_given

        names = ("hidden", "layers", "heads", "kv_heads", "mlp", "vocabulary", "tied")
        sizes = sizes_given(**{name: getattr(self, name) for name in names})
        if (sizes is None) == (self.model is None):
            raise ConfigError(
                "name a model with --model, or give its sizes with --hidden, --layers, ...: one of the two"
            )
        return _counted(self.model if sizes is None else sizes, self.dtype, None if self.all_weights else self.rank)


@functools.cache
def _counted(model: str | Sizes | None, dtype: Precision, rank: int | None) -> Shape:
    from ...run.configs import torch_dtype
    from .outline import outline, trained
    from .shape import shape_of

    assert model is not None
    precision = torch_dtype(dtype)
    assert precision is not None
    return shape_of(trained(outline(model, precision), rank))
