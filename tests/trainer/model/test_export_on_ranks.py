"""A model on several ranks is exported as one process exports it, byte for byte, and no rank ever holds all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lossbook.datums import disk
from lossbook.trainer.model.export import export_model
from lossbook.trainer.model.load import load_model
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.shards import local

from ..head.test_memory import LiveBytes
from ..ranks.processes import RankProcesses
from ..sharding.models import TRAINED, built
from .test_export import of_experts


def exported(ranks: Ranks, trained: str, out: Path, dtype: torch.dtype | None, file_bytes: int) -> int:
    """The most bytes that this rank held beside its own part of the model."""
    model = shard_model(built(trained), ranks)
    own = [local(parameter) for parameter in model.module.parameters()]
    heads = [] if model.value_head is None else [local(parameter) for parameter in model.value_head.parameters()]
    with LiveBytes(*own, *heads, *model.module.buffers()) as live:
        export_model(model, out, dtype=dtype, file_bytes=file_bytes)
    return live.peak


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "trained",
    [name if name == "lora with a value head" else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED],
)
def test_two_ranks_write_what_one_process_writes(trained: str, ranks: RankProcesses, tmp_path: Path) -> None:
    for dtype, file_bytes in ((None, 30_000), (torch.bfloat16, 10**9)):
        alone, together = tmp_path / f"alone-{dtype}", tmp_path / f"together-{dtype}"
        exported(ALONE, trained, alone, dtype, file_bytes)
        ranks.run(exported, trained, together, dtype, file_bytes)
        assert contents(together) == contents(alone)


def test_the_first_rank_holds_one_files_weights_and_the_others_one_weight(ranks: RankProcesses, tmp_path: Path) -> None:
    parameters = list(built("untied").module.parameters())
    largest, whole, file_bytes = max(p.nbytes for p in parameters), sum(p.nbytes for p in parameters), 40_000
    first, second = ranks.run(exported, "untied", tmp_path / "out", None, file_bytes)
    assert file_bytes / 2 < first < file_bytes + 3 * largest < whole
    assert largest <= second < 3 * largest  # gathered, and put together


def of_another_kind(ranks: Ranks, folder: Path, out: Path) -> None:
    """A mixture of experts, named and cut otherwise on disk, with adapters on its experts; and an encoder, with all weights."""
    export_model(shard_model(of_experts(folder), ranks), out / "experts", file_bytes=40_000)
    encoder = load_model("tiny-encoder", device="cpu", dtype=torch.float32).train_all_weights()
    export_model(shard_model(encoder, ranks), out / "encoder")


@pytest.mark.slow
def test_mixtures_of_experts_and_encoders_too(ranks: RankProcesses, tmp_path: Path) -> None:
    of_another_kind(ALONE, tmp_path / "base", tmp_path / "alone")
    ranks.run(of_another_kind, tmp_path / "base", tmp_path / "together")
    for kind in ("experts", "encoder"):
        assert contents(tmp_path / "together" / kind) == contents(tmp_path / "alone" / kind)


def failing(ranks: Ranks, out: Path) -> str:
    """What a rank is told when the first one's disk is full in the middle."""
    model = shard_model(built("untied"), ranks)
    if ranks.is_first:
        os.environ[disk.FAILPOINT] = "enospc@3:write"
    try:
        with pytest.raises(OSError, match="No space left") as raised:
            export_model(model, out, file_bytes=30_000)
    finally:
        os.environ.pop(disk.FAILPOINT, None)
        disk.hits.clear()
    return str(raised.value)


def test_a_disk_that_is_full_is_told_to_every_rank(ranks: RankProcesses, tmp_path: Path) -> None:
    assert len(ranks.run(failing, tmp_path / "out")) == 2
    assert ranks.run(exported, "untied", tmp_path / "out", None, 10**9)
