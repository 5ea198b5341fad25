"""What the weights at the start say: computed once, cached under a key of all they depend on, and never trusted when damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossbook import AdamParams, Datum, ServiceClient, datum_from_tokens_weights
from lossbook.cookbook.preferences.references import References, cache_key
from lossbook.trainer.checkpoint.folder import read_checkpoint, write_checkpoint
from lossbook.trainer.clients.reference import ReferenceClient


def make_client(rank: int = 4, seed: int = 0) -> Any:
    return ServiceClient().create_lora_training_client("tiny", rank=rank, seed=seed)


def make_datums(*texts: str, weight: float = 1.0) -> list[Datum]:
    tokens = [list(text.encode()) for text in texts]
    return [datum_from_tokens_weights(ids, [0.0, *[weight] * (len(ids) - 1)]) for ids in tokens]


@pytest.fixture
def datums() -> list[Datum]:
    return make_datums("one two", "three and four", "five")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many datums each forward of a reference client was given."""
    sizes: list[int] = []
    forward = ReferenceClient.forward

    def counted(self: ReferenceClient, data: Sequence[Any], *rest: Any, **more: Any) -> Any:
        sizes.append(len(data))
        return forward(self, data, *rest, **more)

    monkeypatch.setattr(ReferenceClient, "forward", counted)
    return sizes


def step(training: Any, datums: Sequence[Datum]) -> None:
    training.forward_backward(datums, "cross_entropy").result()
    training.optim_step(AdamParams(learning_rate=1e-2)).result()


def same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_logprobs_are_those_of_a_forward_and_are_computed_once_for_several_runs(
    datums: list[Datum], calls: list[int], tmp_path: Path
) -> None:
    training = make_client()
    expected = [o["logprobs"].to_numpy() for o in training.forward(datums).result().loss_fn_outputs]
    notices: list[str] = []
    first = References(training, tmp_path, notices.append).logprobs(datums)
    again = References(make_client(), tmp_path, notices.append).logprobs(datums)
    assert same(first, expected)
    assert same(again, first)
    assert calls == [3]
    assert "computed, kept in" in notices[0]
    assert "read from" in notices[1]


def test_they_are_of_the_weights_at_the_start_whatever_training_does_afterwards(
    datums: list[Datum], tmp_path: Path
) -> None:
    training = make_client()
    expected = [o["logprobs"].to_numpy() for o in training.forward(datums).result().loss_fn_outputs]
    references = References(training, tmp_path, list[str]().append)
    step(training, datums)
    assert same(references.logprobs(datums), expected)
    moved = References(training, tmp_path, list[str]().append)
    assert moved.fingerprint != references.fingerprint
    assert not same(moved.logprobs(datums), expected)


def test_a_fresh_adapter_does_not_matter_to_the_key_and_a_trained_one_does(datums: list[Datum], tmp_path: Path) -> None:
    """Its B is zero, so that seed and rank change nothing yet."""
    clients = [make_client(4, 0), make_client(8, 1), ServiceClient().create_training_client("tiny")]
    assert len({References(client, tmp_path).fingerprint for client in clients}) == 1
    first, second = make_client(4, 0), make_client(4, 1)
    for client in (first, second):
        step(client, datums)
    assert References(first, tmp_path).fingerprint != References(second, tmp_path).fingerprint


def test_a_value_head_does_not_matter_to_the_key(tmp_path: Path) -> None:
    plain, with_head = make_client(), ServiceClient().create_lora_training_client("tiny", seed=0, value_head=True)
    assert References(plain, tmp_path).fingerprint == References(with_head, tmp_path).fingerprint


def test_whatever_the_numbers_depend_on_changes_the_key(datums: list[Datum], monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {
        "weights of the model": cache_key("logprobs", "b", datums),
        "what is asked": cache_key("top 32", "a", datums),
        "a token": cache_key("logprobs", "a", make_datums("one two", "three and four", "fire")),
        "a weight": cache_key("logprobs", "a", make_datums("one two", "three and four", "five", weight=0.5)),
        "the order": cache_key("logprobs", "a", [datums[1], datums[0], datums[2]]),
        "one datum less": cache_key("logprobs", "a", datums[:2]),
        "two joined": cache_key("logprobs", "a", make_datums("one twothree and four", "five")),
    }
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    changed["the library"] = cache_key("logprobs", "a", datums)
    monkeypatch.undo()
    key = cache_key("logprobs", "a", datums)
    assert key == cache_key("logprobs", "a", make_datums("one two", "three and four", "five"))
    assert len({key, *changed.values()}) == len(changed) + 1


def only_folder(path: Path) -> Path:
    (folder,) = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return folder


@pytest.mark.parametrize("file", ["outputs.safetensors", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_file_is_noticed_and_computed_again(
    file: str, damage: str, datums: list[Datum], calls: list[int], tmp_path: Path
) -> None:
    expected = References(make_client(), tmp_path, list[str]().append).logprobs(datums)
    path = only_folder(tmp_path) / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-20] ^= 1
        path.write_bytes(content)
    notices: list[str] = []
    logprobs = References(make_client(), tmp_path, notices.append).logprobs(datums)
    assert same(logprobs, expected)
    assert calls == [3, 3]
    assert "computing the reference again" in notices[0]
    if (damage, file) != ("missing", "MANIFEST.json"):  # a folder without one is nobody's to replace
        assert same(References(make_client(), tmp_path, notices.append).logprobs(datums), expected)
        assert calls == [3, 3]
        assert "read from" in notices[-1]


def test_sound_files_of_something_else_under_the_same_name_are_not_taken(
    datums: list[Datum], calls: list[int], tmp_path: Path
) -> None:
    expected = References(make_client(), tmp_path, list[str]().append).logprobs(datums)
    folder = only_folder(tmp_path)
    kept = read_checkpoint(folder)
    wrong = {"outputs": {"logprobs": kept.tensors["outputs"]["logprobs"] - 1}}
    manifest = {**kept.manifest, "key": "of other weights"}
    write_checkpoint(tmp_path, folder.name, tensors=wrong, manifest=manifest, overwrite=True)
    notices: list[str] = []
    assert same(References(make_client(), tmp_path, notices.append).logprobs(datums), expected)
    assert "holds something else" in notices[0]
    assert calls == [3, 3]


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_run(datums: list[Datum], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    notices: list[str] = []
    logprobs = References(make_client(), tmp_path / "taken", notices.append).logprobs(datums)
    assert len(logprobs) == 3
    assert "computed, but not kept" in notices[0]


def test_attached_datums_carry_them_beside_what_they_had(datums: list[Datum], tmp_path: Path) -> None:
    references = References(make_client(), tmp_path, list[str]().append)
    attached = references.attached(datums)
    for before, after, logprobs in zip(datums, attached, references.logprobs(datums), strict=True):
        assert after.loss_fn_inputs.keys() == before.loss_fn_inputs.keys() | {"ref_logprobs"}
        assert np.array_equal(after.loss_fn_inputs["ref_logprobs"].to_numpy(), logprobs)


def test_the_likeliest_tokens_are_kept_too(
    datums: list[Datum], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_client()
    expected = training.create_reference_client().top_logprobs(datums, 5).result()
    References(training, tmp_path, list[str]().append).likeliest(datums, 5)
    monkeypatch.setattr(ReferenceClient, "top_logprobs", None)  # would fail if it were asked again
    tops = References(make_client(), tmp_path, list[str]().append).likeliest(datums, 5)
    for one, other in zip(tops, expected, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.logprobs, other.logprobs)
