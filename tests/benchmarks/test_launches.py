"""A step launches no more than a hand-written loop, waits once, and uploads little, on the path that a GPU takes.

Counted by benchmarks/launches.py on a CPU for a Llama of 12 layers, bfloat16 products of float32 weights.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

#: At most, for each kind of step: launches over the plain loop's, the same with fused layers, uploads and reads in a micro-batch.
#: The aims are 1.05, 0.6, 2, 1.
LIMITS = {"SFT": (0.9, 0.45, 2, 1), "DPO": (0.95, 0.5, 2, 1), "GRPO": (1.0, 0.56, 2, 1)}
#: Float32 has no variable-length attention on CUDA: small models are padded there, larger ones attend through flex_attention.
FLOAT32 = 1.05
#: Launches of clipping and optimizer, whatever the number of parameters.
OPTIMIZER = 20
#: Launches of a sampled token over those of `generate`, uploads, reads. The aims are 1.0, 0, and less than 1.
SAMPLED = (1.0, 0.1, 0.1)


@pytest.fixture
def launches() -> ModuleType:
    return importlib.import_module("launches")


def counted(launches: ModuleType, step: str, dtype: str, ways: tuple[str, ...], out: Path) -> list[dict[str, Any]]:
    return launches.main(["--steps", step, "--dtypes", dtype, "--no-sampling", "--ways", *ways, "--out", str(out)])


@pytest.mark.slow
@pytest.mark.parametrize("step", ["SFT", "DPO", "GRPO"])
def test_a_packed_step_launches_uploads_and_reads_at_most(launches: ModuleType, step: str, tmp_path: Path):
    ours, fused, plain = counted(launches, step, "bfloat16", (launches.OURS, launches.FUSED, launches.PLAIN), tmp_path)
    ratio, with_fused_layers, uploads, reads = LIMITS[step]
    assert plain["forward and backward"] > 1500  # the loop was seen
    assert ours["launches / plain loop"] <= ratio
    assert fused["launches / plain loop"] <= with_fused_layers
    for way in (ours, fused):
        assert way["uploads"] <= uploads
        assert way["reads"] <= reads
        assert way["clip and optimizer"] <= OPTIMIZER
        assert way["reads of the optimizer"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("step", LIMITS)
def test_a_padded_step_in_float32_launches_at_most(launches: ModuleType, step: str, tmp_path: Path):
    ours, _ = counted(launches, step, "float32", (launches.PADDED, launches.PLAIN), tmp_path)
    assert ours["launches / plain loop"] <= FLOAT32


@pytest.mark.slow
def test_a_sampled_token_launches_uploads_and_reads_at_most(launches: ModuleType, tmp_path: Path):
    ours, generate = launches.main(["--steps", "--dtypes", "bfloat16", "--out", str(tmp_path)])
    ratio, uploads, reads = SAMPLED
    assert generate["launches"] > 300  # it was seen
    assert ours["launches / generate"] <= ratio
    assert ours["uploads"] <= uploads
    assert ours["reads"] <= reads
