"""A step launches no more than a hand-written loop, waits once, and uploads little, on the path that a GPU takes.

Counted by benchmarks/launches.py on a CPU, in float32, for a Llama of 12 layers.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest

#: At most, for each kind of step: launches over the plain loop's, uploads and reads in a micro-batch. The aims are 1.05, 2, 1.
LIMITS = {"SFT": (1.6, 16, 10), "DPO": (2.45, 18, 17), "GRPO": (1.8, 17, 24)}
#: Launches with fused layers over the plain loop's. The aim is 0.6.
FUSED = {"SFT": 0.9, "DPO": 1.8, "GRPO": 1.2}
#: Launches of clipping and optimizer, whatever the number of parameters. The aim is 20.
OPTIMIZER = 410
#: Launches of a sampled token over those of `generate`, uploads, reads. The aims are 1.0, 0, and less than 1.
SAMPLED = (1.3, 2, 3)


@pytest.fixture
def launches() -> ModuleType:
    return importlib.import_module("launches")


@pytest.mark.parametrize("step", LIMITS)
def test_a_packed_step_launches_uploads_and_reads_at_most(launches: ModuleType, step: str, tmp_path: Any):
    ways = [
        "--ways",
        launches.OURS,
        launches.FUSED,
        launches.PLAIN,
        "--dtypes",
        "float32",
        "--no-sampling",
        "--out",
        str(tmp_path),
    ]
    ours, fused, plain = launches.main(["--steps", step, *ways])
    ratio, uploads, reads = LIMITS[step]
    assert plain["forward and backward"] > 1000  # the loop was seen
    assert ours["launches / plain loop"] <= ratio
    assert fused["launches / plain loop"] <= FUSED[step]
    assert ours["uploads"] <= uploads
    assert ours["reads"] <= reads
    assert ours["clip and optimizer"] <= OPTIMIZER
    assert ours["reads of the optimizer"] <= 1


def test_a_sampled_token_launches_uploads_and_reads_at_most(launches: ModuleType, tmp_path: Any):
    ours, generate = launches.main(["--steps", "--dtypes", "float32", "--out", str(tmp_path)])
    ratio, uploads, reads = SAMPLED
    assert generate["launches"] > 300  # it was seen
    assert ours["launches / generate"] <= ratio
    assert ours["uploads"] <= uploads
    assert ours["reads"] <= reads
