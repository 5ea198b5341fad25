"""What is saved comes back bit for bit; what was tampered with, damaged or unsafe is refused by file and reason."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from lossbook.datums.errors import CheckpointError
from lossbook.datums.types import AdamParams
from lossbook.trainer.checkpoint.folder import (
    Checkpoint,
    check_name,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from lossbook.trainer.checkpoint.manifest import MANIFEST_NAME, sealed
from lossbook.trainer.optim.adamw import AdamW


def contents(step: int) -> dict[str, Any]:
    """What a checkpoint of this step holds; every part of it depends on the step."""
    return {
        "tensors": {
            "model": {"layer.weight": torch.full((3, 2), float(step)), "layer.bias": torch.arange(3) + step},
            "optimizer": {"step.layer.bias": torch.tensor(float(step))},
        },
        "manifest": {"step": step, "loss": {"id": "ppo", "config": {"clip_high": 1.28}}},
        "extra_files": {"tokenizer.json": f'{{"step": {step}}}'.encode()},
    }


def save(root: Path, step: int, name: str = "state", **options: Any) -> Path:
    return write_checkpoint(root, name, **{**contents(step), **options})


def assert_is_step(checkpoint: Checkpoint, step: int) -> None:
    expected = contents(step)
    assert checkpoint.manifest == expected["manifest"]
    assert (checkpoint.path / "tokenizer.json").read_bytes() == expected["extra_files"]["tokenizer.json"]
    assert checkpoint.tensors.keys() == expected["tensors"].keys()
    for key, group in expected["tensors"].items():
        assert checkpoint.tensors[key].keys() == group.keys()
        for name, tensor in group.items():
            assert torch.equal(checkpoint.tensors[key][name], tensor)
            assert checkpoint.tensors[key][name].dtype == tensor.dtype


def step_of(path: Path) -> int:
    """The step of the checkpoint at `path`, which is whole."""
    checkpoint = read_checkpoint(path)
    assert_is_step(checkpoint, checkpoint.manifest["step"])
    return checkpoint.manifest["step"]


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes into a checkpoint and mend the manifest, as an attacker would."""
    (folder / name).write_bytes(data)
    record = json.loads((folder / MANIFEST_NAME).read_bytes())
    record["files"][name] = {"size": len(data), "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
    (folder / MANIFEST_NAME).write_bytes(sealed(record))


def edit_manifest(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / MANIFEST_NAME).read_bytes())
    (folder / MANIFEST_NAME).write_bytes(sealed({**record, **changes}))


# -- what goes in comes out ------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = save(tmp_path / "not" / "there" / "yet", 7)
    assert path == tmp_path / "not" / "there" / "yet" / "state"
    checkpoint = read_checkpoint(path)
    assert checkpoint.path == path
    assert_is_step(checkpoint, 7)
    assert checkpoint.versions["torch"] == importlib.metadata.version("torch")
    assert checkpoint.versions.keys() == {"lossbook", "torch", "transformers", "peft", "safetensors"}
    assert sorted(os.listdir(path)) == [MANIFEST_NAME, "model.safetensors", "optimizer.safetensors", "tokenizer.json"]
    assert os.listdir(path.parent) == ["state"]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool],
    ids=str,
)
def test_every_bit_of_a_tensor_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (96,), dtype=torch.uint8)
    tensors = {
        "all": bits.view(dtype),
        "scalar": bits[:8].view(dtype)[0].clone(),
        "empty": torch.zeros(0, 4, dtype=dtype),
        "transposed": bits.view(dtype)[:8].view(2, 4).t(),
        "shared": bits.view(dtype),
    }
    read = read_checkpoint(write_checkpoint(tmp_path, "x", tensors={"t": tensors}, manifest={})).tensors["t"]
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)  # each flushes files to a disk
@given(manifest=st.dictionaries(st.text(), json_values, max_size=4))
def test_a_manifest_comes_back_value_for_value(tmp_path_factory: pytest.TempPathFactory, manifest: dict) -> None:
    path = write_checkpoint(tmp_path_factory.mktemp("root"), "x", tensors={}, manifest=manifest)
    assert read_checkpoint(path).manifest == manifest


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"loss": float("nan")}, "JSON has no NaN or infinity"),
        ({"loss": float("inf")}, "JSON has no NaN or infinity"),
        ({"seen": {3: "three"}}, r"manifest\['seen.*string"),
        ({"betas": (0.9, 0.95)}, r"manifest\['betas'\] cannot be stored: .* Use numbers, strings, lists"),
        ({"rng": torch.zeros(2)}, r"manifest\['rng'\] cannot be stored: .* put arrays into `tensors`"),
    ],
    ids=["NaN", "infinity", "a key that is a number", "a tuple", "a tensor"],
)
def test_a_manifest_that_would_come_back_changed_is_refused(tmp_path: Path, manifest: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(tmp_path / "root", "x", tensors={}, manifest=manifest)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(2, device="meta"), torch.eye(2).to_sparse(), 3.0],
    ids=["no data", "sparse", "no tensor"],
)
def test_what_is_no_dense_tensor_is_refused_and_nothing_is_left(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be stored: .* Tensors must be dense"):
        write_checkpoint(tmp_path, "x", tensors={"model": {"w": tensor}}, manifest={})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.safetensors", MANIFEST_NAME, "manifest.json"])
def test_an_extra_file_must_not_take_the_name_of_another(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="two files of the checkpoint would be called"):
        save(tmp_path, 1, extra_files={name: b""})


def test_an_extra_file_must_be_bytes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"extra_files\['a.txt'\] is str; it must be bytes"):
        save(tmp_path, 1, extra_files={"a.txt": "text"})


def test_only_the_tensors_asked_for_are_read_and_verified(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "optimizer.safetensors").write_bytes(b"damaged")
    assert read_checkpoint(path, names=["model"]).tensors.keys() == {"model"}
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors has 7 bytes"):
        read_checkpoint(path)


def test_asking_for_an_optimizer_that_was_not_saved_fails(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "weights", tensors={"model": {}}, manifest={})
    with pytest.raises(CheckpointError, match="'weights' was saved without 'optimizer'; it holds model"):
        read_checkpoint(path, names=["model", "optimizer"])


def test_tensors_that_the_manifest_names_without_a_file_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    edit_manifest(path, tensors=["model", "x"])
    with pytest.raises(
        CheckpointError, match=r"'state' has no file 'x.safetensors'; it has model.safetensors, optimizer"
    ):
        read_checkpoint(path)


def test_the_files_can_be_read_by_whom_the_folder_is_open_to(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    folder = stat.S_IMODE(path.stat().st_mode)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert set(modes.values()) == {folder & 0o666}, modes


def test_a_run_resumed_from_a_checkpoint_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    """Weights, moments, step counts and the random state: the resumed run draws the same noise."""

    def train(parameters: dict[str, Parameter], optimizer: AdamW, steps: int) -> None:
        for _ in range(steps):
            for p in parameters.values():
                p.grad = torch.randn(p.shape) * p.detach()
            optimizer.step(AdamParams(learning_rate=0.1, weight_decay=0.1, grad_clip_norm=0.5))

    torch.manual_seed(0)
    whole = {"w": Parameter(torch.randn(4, 3)), "b": Parameter(torch.randn(3))}
    optimizer = AdamW(whole)
    train(whole, optimizer, 3)
    weights = {name: p.detach() for name, p in whole.items()}
    path = write_checkpoint(
        tmp_path,
        "step-3",
        tensors={
            "model": weights,
            "optimizer": optimizer.state_tensors(),
            "rng": {"cpu": torch.get_rng_state()},
        },
        manifest={"step": 3, "optimizer": optimizer.meta()},
    )
    train(whole, optimizer, 4)

    torch.manual_seed(12345)
    checkpoint = read_checkpoint(path)
    resumed = {name: Parameter(checkpoint.tensors["model"][name]) for name in whole}
    resumed_optimizer = AdamW(resumed)
    resumed_optimizer.load_state_tensors(checkpoint.tensors["optimizer"], checkpoint.manifest["optimizer"])
    torch.set_rng_state(checkpoint.tensors["rng"]["cpu"])
    train(resumed, resumed_optimizer, 4)

    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert resumed_optimizer.meta() == optimizer.meta()
    again = read_checkpoint(path).tensors["model"]
    assert not any(torch.equal(again[name], resumed[name]) for name in whole), "training must not reach into the file"


# -- names -----------------------------------------------------------------------------------------------------------

GOOD_NAMES = ["a", "step-10", "0", "A.b_c-d", "a..b", "x" * 128, "console", "company1", "step.tmp-1"]
BAD_NAMES = {
    "empty": "",
    "parent": "..",
    "self": ".",
    "climbing": "../x",
    "absolute": "/etc/x",
    "two segments": "a/b",
    "two segments on Windows": "a\\b",
    "hidden": ".hidden",
    "dash first": "-rf",
    "ends in a line break": "a\n",
    "holds a NUL": "a\0",
    "ends in a NUL": "a\x00b",
    "a space": "a b",
    "ends in a dot": "a.",
    "percent-encoded": "%2e%2e%2f",
    "full-width dots (NFKC: ..)": "\uff0e\uff0e",
    "two-dot leader (NFKC: ..)": "\u2025",
    "full-width slash (NFKC: /)": "a\uff0fb",
    "full-width letters (NFKC: con)": "ｃｏｎ",
    "Arabic digits": "١٢",
    "300 characters": "x" * 300,
    "129 characters": "x" * 129,
    "device": "con",
    "device in capitals": "CON",
    "device with an ending": "nul.txt",
    "port": "com1",
    "printer port": "LPT9.state",
    "drive": "c:",
    "no string": 3,
    "bytes": b"a",
    "none": None,
}


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_plain_name_is_taken(tmp_path: Path, name: str) -> None:
    assert check_name(name) == name
    assert step_of(save(tmp_path, 1, name)) == 1


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_a_name_that_could_leave_the_root_is_refused_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    name: Any = BAD_NAMES[kind]
    root = tmp_path / "root"
    with pytest.raises(CheckpointError, match=r"cannot be a name .* Use 1 to 128 characters out of A-Z, a-z, 0-9"):
        check_name(name)
    with pytest.raises(CheckpointError, match="cannot be a name"):
        save(root, 1, name)
    with pytest.raises(CheckpointError, match="cannot be a name"):
        save(root, 1, tensors={name: {}})
    with pytest.raises(CheckpointError, match="cannot be a name"):
        save(root, 1, extra_files={name: b""})
    assert os.listdir(tmp_path) == []


@given(name=st.text(max_size=8))
def test_a_name_that_is_taken_is_one_segment_of_plain_characters(name: str) -> None:
    try:
        check_name(name)
    except CheckpointError:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert Path("root", name).resolve().parent == Path("root").resolve()


# -- damage ----------------------------------------------------------------------------------------------------------

FILES = [MANIFEST_NAME, "model.safetensors", "optimizer.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_flip_of_any_bit_is_refused_and_the_file_named(tmp_path: Path, file: str) -> None:
    path = save(tmp_path, 1)
    data = (path / file).read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        (path / file).write_bytes(bytes(changed))
        with pytest.raises(CheckpointError, match=re.escape(str(path / file))):
            read_checkpoint(path)
    (path / file).write_bytes(data)
    assert step_of(path) == 1


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0], ids=["empty", "half", "all but the last byte"])
def test_a_file_that_was_cut_off_is_named_with_what_to_do(tmp_path: Path, file: str, kept: float) -> None:
    path = save(tmp_path, 1)
    data = (path / file).read_bytes()
    (path / file).write_bytes(data[: min(int(len(data) * kept), len(data) - 1)])
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path / file))} .*damaged and nothing of it was used"):
        read_checkpoint(path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("append", [b"\0", b" ", b"\n"])
def test_an_appended_byte_is_refused(tmp_path: Path, file: str, append: bytes) -> None:
    path = save(tmp_path, 1)
    with open(path / file, "ab") as opened:
        opened.write(append)
    with pytest.raises(CheckpointError, match=re.escape(str(path / file))):
        read_checkpoint(path)


@pytest.mark.parametrize("file", FILES[1:])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    path = save(tmp_path, 1)
    (path / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path / file))} is missing. .*restore this file"):
        read_checkpoint(path)


def test_a_folder_without_manifest_was_not_finished(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / MANIFEST_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"has no MANIFEST.json: it was not finished.*latest_checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*step-1\. Look at the names in"):
        read_checkpoint(tmp_path / "step-1")


MANIFESTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"\x80\x04K\x01.", "is not JSON"),
    "deep nesting": (b"[" * 200_000, "is not JSON"),
    "a list": (b"[]", "does not begin with the format"),
    "of another program": (b'{"format_version": 1}', "does not begin with the format"),
    "without a hash": (b'{"format": "lossbook checkpoint", "format_version": 1}', "does not match the hash"),
    "NaN": (b'{"format": "lossbook checkpoint", "format_version": 1, "x": NaN}', "is not a manifest as lossbook"),
    "sealed, but with nothing in it": (sealed({"format": "lossbook checkpoint", "format_version": 1}), "written_at"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_lossbook_did_not_write_is_refused(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, 1)
    data, message = MANIFESTS[kind]
    (path / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("version", [0, 3, "1", None, 1e300])
def test_an_unknown_format_version_is_refused_with_the_versions_that_wrote_it(tmp_path: Path, version: Any) -> None:
    path = save(tmp_path, 1)
    edit_manifest(path, format_version=version, versions={"lossbook": "9.0"})
    with pytest.raises(
        CheckpointError, match=r"has format version .*; this lossbook reads 1 and 2\. .*'lossbook': '9.0'"
    ):
        read_checkpoint(path)


def test_a_manifest_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    os.truncate(path / MANIFEST_NAME, 2**40)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="has 1099511627776 bytes, more than any manifest needs"):
        read_checkpoint(path)


def safetensors_bytes(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "empty file": b"",
    "huge header length": safetensors_bytes({}, length=2**62),
    "header longer than the file": safetensors_bytes({}, length=1000),
    "header that is not UTF-8": safetensors_bytes(b"\xff" * 8),
    "header that is not JSON": safetensors_bytes(b"not json"),
    "unknown dtype": safetensors_bytes({"a": entry("NaN", [1], 0, 4)}, b"1234"),
    "overlapping offsets": safetensors_bytes({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456"),
    "offsets past the end": safetensors_bytes({"a": entry("F32", [9], 0, 36)}, b"1234"),
    "shape larger than its bytes": safetensors_bytes({"a": entry("F32", [2**40], 0, 4)}, b"1234"),
    "negative shape": safetensors_bytes({"a": entry("F32", [-1], 0, 4)}, b"1234"),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07bananas\x94.",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_file_that_is_not_safetensors_is_refused_even_if_its_hash_is_right(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, 1)
    replace_file(path, "model.safetensors", HEADERS[kind])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read as safetensors \("):
        read_checkpoint(path)


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    record = {"size": 6, "sha256": hashlib.sha256(secret.read_bytes()).hexdigest()}
    files = json.loads((path / MANIFEST_NAME).read_bytes())["files"]
    edit_manifest(path, files={**files, "../secret": record})
    with pytest.raises(CheckpointError, match=r"'../secret' cannot be a name"):
        read_checkpoint(path)
    edit_manifest(path, files={**files, "../secret.safetensors": record}, tensors=["../secret"])
    with pytest.raises(CheckpointError, match=r"'../secret.safetensors' cannot be a name"):
        read_checkpoint(path, names=["../secret"])


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "state.pkl", "last.ckpt", "WEIGHTS.PTH"])
def test_a_pickle_is_never_read_whether_given_itself_or_in_a_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "foreign" / name
    file.parent.mkdir()
    file.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    for path in (file, file.parent):
        with pytest.raises(CheckpointError, match=rf"{name} looks like a pickle, and reading a pickle runs whatever"):
            read_checkpoint(path)


def test_another_single_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a file; a checkpoint is a folder with MANIFEST.json"):
        read_checkpoint(save(tmp_path, 1) / "model.safetensors")


# -- links and devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_a_link_in_place_of_a_file_is_refused_even_if_it_leads_to_the_right_bytes(tmp_path: Path, file: str) -> None:
    path = save(tmp_path / "root", 1)
    shutil.move(path / file, tmp_path / "elsewhere")
    (path / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{file} is a link or a device, not a plain file"):
        read_checkpoint(path)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "tokenizer.json").unlink()
    os.mkfifo(path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is a link or a device"):
        read_checkpoint(path)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside", 1)
    root = tmp_path / "root"
    save(root, 2, "step-2")
    (root / "step-9").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"step-9 is a link that leads out of .*root"):
        read_checkpoint(root / "step-9")
    with pytest.warns(UserWarning, match=r"skipped damaged .* using 'step-2': .*leads out of"):
        assert latest_checkpoint(root) == root / "step-2"
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="step-9 is there and is no checkpoint"):
            save(root, 3, "step-9", overwrite=overwrite)
    assert step_of(outside) == 1


def test_a_ring_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="is a link that leads out"):
        read_checkpoint(tmp_path / "a")


def test_a_link_to_a_checkpoint_of_the_same_root_may_be_read(tmp_path: Path) -> None:
    save(tmp_path, 4, "step-4")
    (tmp_path / "best").symlink_to("step-4")
    assert step_of(tmp_path / "best") == 4


def test_a_link_to_an_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    unfinished = tmp_path / f".step-4.tmp-{'0' * 32}"
    os.rename(save(tmp_path, 4), unfinished)
    (tmp_path / "best").symlink_to(unfinished.name)
    with pytest.raises(CheckpointError, match="is a link that leads out"):
        read_checkpoint(tmp_path / "best")


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to("disk")
    assert step_of(save(tmp_path / "root", 5)) == 5
    assert latest_checkpoint(tmp_path / "root") == tmp_path / "root" / "state"


# -- the latest ------------------------------------------------------------------------------------------------------


def test_the_latest_checkpoint_is_that_of_the_greatest_step_not_of_the_greatest_name(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step, f"step-{step}")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-10"


def test_without_steps_the_last_written_is_the_latest(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        save(tmp_path, 0, name, manifest={"step": True})
    edit_manifest(tmp_path / "c", written_at=4e9)
    assert latest_checkpoint(tmp_path) == tmp_path / "c"


def test_a_prefix_chooses_among_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 9, "sampler-9")
    save(tmp_path, 3, "step-3")
    assert latest_checkpoint(tmp_path, prefix="step-") == tmp_path / "step-3"
    assert latest_checkpoint(tmp_path, prefix="nothing") is None


def test_without_any_checkpoint_there_is_no_latest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").write_text("no checkpoint")
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_latest_checkpoint_is_skipped_with_a_warning_that_says_so(tmp_path: Path, file: str) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, f"step-{step}")
    for step in (2, 3):
        damaged = tmp_path / f"step-{step}" / file
        damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="skipped damaged checkpoints") as caught:
        assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
    (warning,) = caught
    assert "using 'step-1'" in str(warning.message)
    assert str(tmp_path / "step-3" / file) in str(warning.message)
    assert str(tmp_path / "step-2" / file) in str(warning.message)


def test_when_every_checkpoint_is_damaged_the_warning_says_so(tmp_path: Path) -> None:
    (save(tmp_path, 1) / MANIFEST_NAME).unlink()
    with pytest.warns(UserWarning, match=r"no whole one is left: .*has no MANIFEST.json"):
        assert latest_checkpoint(tmp_path) is None


def test_damage_to_an_older_checkpoint_does_not_hide_the_latest(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, f"step-{step}")
    (tmp_path / "step-1" / "model.safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(tmp_path) == tmp_path / "step-2"


def test_writing_a_checkpoint_changes_none_of_what_it_is_given(tmp_path: Path) -> None:
    given_contents = contents(1)
    before = copy.deepcopy(given_contents)
    write_checkpoint(tmp_path, "x", **given_contents)
    assert given_contents["manifest"] == before["manifest"]
    assert_is_step(read_checkpoint(tmp_path / "x"), 1)
    assert all(torch.equal(v, before["tensors"]["model"][k]) for k, v in given_contents["tensors"]["model"].items())
