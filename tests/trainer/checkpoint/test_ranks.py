"""What several ranks write is one checkpoint, which any number of ranks reads bit for bit; one that fails stops all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lossbook.datums import disk
from lossbook.datums.errors import CheckpointError
from lossbook.trainer.checkpoint.folder import latest_checkpoint, read_checkpoint, write_checkpoint
from lossbook.trainer.checkpoint.manifest import MANIFEST_NAME, sealed
from lossbook.trainer.ranks import Ranks
from lossbook.trainer.shards import Part, local, part_of

from ..ranks.processes import RankProcesses
from .test_checkpoints import replace_file, safetensors_bytes
from .test_crafted import places

SHARDED = ["weights-0-of-2.safetensors", "weights-1-of-2.safetensors"]


def wholes(step: int) -> dict[str, Tensor]:
    """Tensors of uneven sizes: one with fewer rows than ranks, one of no rows, one number, and NaN among the bits."""
    noise = torch.Generator().manual_seed(step)
    return {
        "embeddings": torch.randn(7, 3, generator=noise),
        "experts": torch.randn(5, 2, 3, generator=noise).to(torch.bfloat16),
        "one row": torch.full((1, 2), float("nan")),
        "no row": torch.zeros(0, 4),
        "step": torch.tensor(float(step)),
    }


def on_ranks(ranks: Ranks, step: int) -> tuple[dict[str, Tensor], dict[str, Part]]:
    """What this rank holds of each, and which part that is."""
    mesh = init_device_mesh("cpu", (ranks.size,)) if ranks.size > 1 else None
    tensors, parts = {}, {}
    for name, tensor in wholes(step).items():
        whole = mesh is None or tensor.ndim == 0
        placed = tensor if whole else distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)
        tensors[name], parts[name] = local(placed), part_of(placed, ranks)
    return tensors, parts


def save(ranks: Ranks, root: Path, step: int, overwrite: bool = False, failpoint: str | None = None) -> list[str]:
    """Write `root/state` from all ranks; rank 1 fails where a failpoint says. Returns the hidden leftovers."""
    tensors, parts = on_ranks(ranks, step)
    try:
        if failpoint is not None and ranks.rank == 1:
            os.environ[disk.FAILPOINT] = failpoint
        write_checkpoint(
            root,
            "state",
            tensors={"weights": tensors, "random": {"cpu": torch.arange(3) + step}},
            manifest={"step": step},
            extra_files={"tokenizer.json": b"%d" % step},
            overwrite=overwrite,
            ranks=ranks,
            parts={"weights": parts},
        )
    finally:
        if failpoint is not None:
            os.environ.pop(disk.FAILPOINT, None)
            disk.hits.clear()
    return [name for name in os.listdir(root) if name.startswith(".")]


def assert_read(ranks: Ranks, root: Path, step: int) -> None:
    """Each rank reads its own part; what it does not hold is read whole, and all of it is of this step."""
    expected, parts = on_ranks(ranks, step)
    checkpoint = read_checkpoint(root / "state", ranks=ranks, parts={"weights": parts} if ranks.size > 1 else None)
    assert checkpoint.manifest == {"step": step}
    assert torch.equal(checkpoint.tensors["random"]["cpu"], torch.arange(3) + step)
    assert_same(checkpoint.tensors["weights"], expected)


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        read = tensors[name]
        assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def refusal(ranks: Ranks, function: Callable[..., Any], *args: Any) -> str:
    """What this rank is told where all of them must be refused."""
    with pytest.raises(CheckpointError) as raised:
        function(ranks, *args)
    return str(raised.value)


@pytest.fixture
def written(ranks: RankProcesses, tmp_path: Path) -> Path:
    """The folder of a checkpoint of two ranks."""
    ranks.run(save, tmp_path, 1)
    return tmp_path / "state"


def test_each_rank_writes_what_it_holds_and_the_first_writes_all_else(written: Path) -> None:
    assert sorted(os.listdir(written)) == sorted([MANIFEST_NAME, "random.safetensors", "tokenizer.json", *SHARDED])
    assert os.listdir(written.parent) == ["state"]
    record = json.loads((written / MANIFEST_NAME).read_bytes())
    assert record["format_version"] == 2
    shards = record["shards"]["weights"]
    layout = shards["layouts"][shards["tensors"]["embeddings"]["layout"]]
    assert layout == {"shape": [7, 3], "parts": [[[0, 0], [4, 3]], [[4, 0], [7, 3]]]}  # torch.chunk gives 4 and 3 rows
    assert record["files"].keys() == {*SHARDED, "random.safetensors", "tokenizer.json"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((1, 2), (2, 1), (2, 2)),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(4, 1), (4, 2), (2, 4), (1, 4)]),
    ],
    ids=lambda number: str(number),
)
def test_what_some_ranks_wrote_any_other_number_reads_bit_for_bit(
    before: int, after: int, ranks: RankProcesses, tmp_path: Path
) -> None:
    ranks.run(save, tmp_path, 3, size=before)
    ranks.run(assert_read, tmp_path, 3, size=after)
    assert_same(read_checkpoint(tmp_path / "state").tensors["weights"], wholes(3))
    assert latest_checkpoint(tmp_path) == tmp_path / "state"


def both_ways(ranks: Ranks, root: Path) -> None:
    """Rows on one dimension of the ranks and columns on the other; then copies on one of them."""
    mesh, whole = init_device_mesh("cpu", (2, 2)), wholes(1)["embeddings"]
    for name, placements in (("both", [Shard(0), Shard(1)]), ("copies", [Replicate(), Shard(0)])):
        placed = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        tensors, parts = {"w": local(placed)}, {"w": part_of(placed, ranks)}
        write_checkpoint(root, name, tensors={"t": tensors}, manifest={}, ranks=ranks, parts={"t": parts})
        read = read_checkpoint(root / name, ranks=ranks, parts={"t": parts})
        assert torch.equal(read.tensors["t"]["w"], tensors["w"])


@pytest.mark.slow
def test_tensors_that_are_cut_both_ways_or_lie_twice_come_back(ranks: RankProcesses, tmp_path: Path) -> None:
    ranks.run(both_ways, tmp_path, size=4)
    for name in ("both", "copies"):
        assert torch.equal(read_checkpoint(tmp_path / name).tensors["t"]["w"], wholes(1)["embeddings"])


# -- one that fails stops all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["enospc@1:write", "eio@1:sync", "short@1", "truncate@1", "flip@1"])
def test_where_one_writer_fails_all_are_told_the_same_and_what_was_there_stays(
    action: str, written: Path, ranks: RankProcesses
) -> None:
    first, second = ranks.run(refusal, save, written.parent, 2, True, action)
    assert first == second
    assert "could not be written" in first or "weights-1-of-2.safetensors" in first
    assert os.listdir(written.parent) == ["state"]
    ranks.run(assert_read, written.parent, 1)
    assert ranks.run(save, written.parent, 2, True) == [[], []]
    ranks.run(assert_read, written.parent, 2)


def test_a_name_that_is_taken_is_refused_on_every_rank(written: Path, ranks: RankProcesses) -> None:
    first, second = ranks.run(refusal, save, written.parent, 2)
    assert first == second
    assert "'state' exists already" in first
    ranks.run(assert_read, written.parent, 1)


def save_other_tensors(ranks: Ranks, root: Path) -> None:
    tensors, parts = on_ranks(ranks, 1)
    if ranks.rank == 1:
        del tensors["one row"]
    write_checkpoint(root, "x", tensors={"weights": tensors}, manifest={}, ranks=ranks, parts={"weights": parts})


def save_the_same_rows(ranks: Ranks, root: Path) -> None:
    tensors, parts = on_ranks(ranks, 1)
    parts["embeddings"] = Part((7, 3), (0, 0), (4 - ranks.rank, 3))
    write_checkpoint(root, "x", tensors={"weights": tensors}, manifest={}, ranks=ranks, parts={"weights": parts})


@pytest.mark.parametrize(
    ("wrongly", "reason"),
    [
        (save_other_tensors, "the ranks hold other tensors than each other"),
        (save_the_same_rows, "'embeddings' [7, 3]: two files hold the same rows of it"),
    ],
    ids=["a tensor that one rank lacks", "rows that two ranks hold"],
)
def test_what_makes_no_whole_tensors_is_not_written(
    wrongly: Callable[..., Any], reason: str, ranks: RankProcesses, tmp_path: Path
) -> None:
    first, second = ranks.run(refusal, wrongly, tmp_path)
    assert first == second
    assert reason in first
    assert os.listdir(tmp_path) == []


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def swap(path: Path) -> None:
    other = path.with_name(SHARDED[0])
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swap_and_mend(path: Path) -> None:
    """Files of one another, with hashes that are right."""
    first, second = (path.with_name(name).read_bytes() for name in SHARDED)
    replace_file(path.parent, SHARDED[0], second)
    replace_file(path.parent, SHARDED[1], first)


def edit_layout(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change how the embeddings lie in the files, and mend the manifest's hash."""
    record = json.loads((path.parent / MANIFEST_NAME).read_bytes())
    shards = record["shards"]["weights"]
    change(shards["layouts"][shards["tensors"]["embeddings"]["layout"]])
    (path.parent / MANIFEST_NAME).write_bytes(sealed(record))


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda path: edit_layout(path, change)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (flip, "weights-1-of-2.safetensors has other content"),
    "missing": (lambda path: path.unlink(), "weights-1-of-2.safetensors is missing"),
    "half": (lambda path: os.truncate(path, 40), "weights-1-of-2.safetensors has 40 bytes"),
    "swapped": (swap, "weights-"),
    "swapped and mended": (swap_and_mend, "weights-0-of-2.safetensors holds 'embeddings' as [3, 3]"),
    "foreign": (
        lambda path: replace_file(path.parent, path.name, safetensors_bytes({})),
        "weights-1-of-2.safetensors lacks 'embeddings', unlike its manifest",
    ),
    "no safetensors": (lambda path: replace_file(path.parent, path.name, b"x" * 99), "cannot be read as safetensors"),
    "overlapping rows": (
        edited(lambda layout: layout["parts"].__setitem__(0, [[0, 0], [5, 3]])),
        "weights: 'embeddings' [7, 3]: two files hold the same rows of it",
    ),
    "missing rows": (
        edited(lambda layout: layout["parts"].__setitem__(0, [[0, 0], [3, 3]])),
        "weights: 'embeddings' [7, 3]: some of its rows are in no file",
    ),
    "rows outside": (
        edited(lambda layout: layout["parts"].__setitem__(1, [[4, 0], [8, 3]])),
        "weights: 'embeddings' [7, 3]: a part of it lies outside of it",
    ),
    "another shape": (
        edited(lambda layout: layout.update(shape=[7, 2], parts=[[[0, 0], [4, 2]], [[4, 0], [7, 2]]])),
        "holds 'embeddings' as [",
    ),
    "a file that is not named": (edited(lambda layout: layout["parts"].pop()), "1 files are named for it, of 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_of_one_rank_is_refused_by_name_on_every_rank_and_by_one_process(
    kind: str, written: Path, ranks: RankProcesses
) -> None:
    damage, reason = DAMAGE[kind]
    damage(written / SHARDED[1])
    for told in (*ranks.run(refusal, assert_read, written.parent, 1), refusal(Ranks(), assert_read, written.parent, 1)):
        assert reason in told


#: What a manifest may say where it says something else.
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    2**53,
    2**60,
    1.5,
    "",
    "load",
    "float64",
    [],
    [0, 0],
    [[0, 0], [0, 0]],
    {},
    {"x": 1},
]


@pytest.mark.slow
def test_whatever_else_a_manifest_says_of_shards_is_refused_or_makes_no_difference(written: Path) -> None:
    record = json.loads((written / MANIFEST_NAME).read_bytes())
    expected, refused = with_numbers(written), 0
    for place in places(record["shards"]):
        for value in [*ODD, GONE]:
            changed = copy.deepcopy(record)
            put(changed["shards"], place, value)
            (written / MANIFEST_NAME).write_bytes(sealed(changed))
            try:
                tensors = with_numbers(written)
            except CheckpointError:
                refused += 1
            else:
                assert_same(tensors, expected)
    assert refused > 500


GONE = object()


def with_numbers(folder: Path) -> dict[str, Tensor]:
    """The weights but for those without any number, of which the manifest alone knows the shape."""
    return {name: tensor for name, tensor in read_checkpoint(folder).tensors["weights"].items() if tensor.numel()}


def put(shards: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    """Put a value where another was, or remove that."""
    *above, last = place
    holder: Any = shards
    for key in above:
        holder = holder[key]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value


def opened_while_reading(ranks: Ranks, root: Path) -> list[str]:
    """The names of the files of the checkpoint that Python opened, as it does to hash them."""
    names: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(str(root)):
            names.append(Path(arguments[0]).name)

    sys.addaudithook(watch)
    assert_read(ranks, root, 1)
    watching = False
    return names


def test_on_one_host_each_file_is_verified_by_one_rank(written: Path, ranks: RankProcesses) -> None:
    counts = Counter(name for names in ranks.run(opened_while_reading, written.parent) for name in names)
    assert counts.pop(MANIFEST_NAME) == 2
    assert counts == dict.fromkeys([*SHARDED, "random.safetensors", "tokenizer.json"], 1)


def test_a_rank_that_reads_another_copy_is_told_so(written: Path, ranks: RankProcesses, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(written, other / "state")
    record = json.loads((other / "state" / MANIFEST_NAME).read_bytes())
    (other / "state" / MANIFEST_NAME).write_bytes(sealed({**record, "written_at": 0.0}))
    for told in ranks.run(refusal, read_one_of, [written.parent, other]):
        assert "is another checkpoint on one rank than on another" in told


def read_one_of(ranks: Ranks, roots: list[Path]) -> None:
    assert_read(ranks, roots[ranks.rank], 1)
