"""Runs and checkpoints on the disk: what is listed is whole, what is over is gone, and no name leads out of the folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lossbook.datums import disk
from lossbook.datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from lossbook.integrations.tinker.store import Kind, Store, parsed
from lossbook.trainer.checkpoint.folder import read_checkpoint, write_checkpoint

HOUR, YEAR = 3600, 365 * 24 * 3600
OF_KIND: dict[Kind, str] = {"weights": "training", "sampler_weights": "weights"}
NAMES = ("a", "final", "step-1", "A.b_c")


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(microseconds=1)  # no two things happen at once
        return self.time

    def turn(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    return Store(tmp_path / "root", now=clock)


@pytest.fixture
def run(store: Store) -> str:
    return store.new_run(store.new_session(), base_model="tiny", lora_rank=4)


def save(store: Store, run: str, kind: Kind, name: str, value: int = 0, **options: Any) -> str:
    """Save a checkpoint that holds `value`; returns its path."""
    with store.saving(run, kind, name, **options) as path:
        tensors = {"weights": {"a": torch.tensor(float(value))}}
        write_checkpoint(path.parent, path.name, tensors=tensors, manifest={"kind": OF_KIND[kind], "value": value})
    return store.path_of(run, kind, name)


def value_of(store: Store, path: str) -> int:
    """What a checkpoint holds, after verifying all its files."""
    checkpoint = read_checkpoint(store.locate(path).folder)
    assert checkpoint.tensors["weights"]["a"] == checkpoint.manifest["value"]
    return checkpoint.manifest["value"]


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def hidden(root: Path) -> list[Path]:
    """What writers leave behind."""
    return [path for path in root.rglob(".*")]


# -- names, and what they stand for ------------------------------------------------------------------------------------


def test_a_name_of_each_kind_is_a_checkpoint_of_its_own(store: Store, run: str) -> None:
    state, sampler = save(store, run, "weights", "final", 1), save(store, run, "sampler_weights", "final", 2)
    assert state == f"tinker://{run}/weights/final"
    assert sampler == f"tinker://{run}/sampler_weights/final"
    assert (value_of(store, state), value_of(store, sampler)) == (1, 2)
    store.delete(state)
    assert [one.path for one in store.checkpoints()] == [sampler]


def test_runs_of_a_session_are_numbered_and_say_what_they_train(store: Store) -> None:
    session = store.new_session(user_metadata={"who": "me"}, project_id="p", display_name="mine")
    settings_of = {
        "train_mlp": True,
        "train_attn": False,
        "train_unembed": True,
        "user_metadata": {"renderer": "plain"},
    }
    runs = [store.new_run(session, base_model="tiny", lora_rank=8, **settings_of) for _ in range(3)]
    assert runs == [f"{session}:train:{number}" for number in range(3)]
    record = Store(store.root).run(runs[1])
    assert (record.base_model, record.is_lora, record.lora_rank) == ("tiny", True, 8)
    assert {name: getattr(record, name) for name in settings_of} == settings_of
    assert [one.run_id for one in store.runs(session_id=session)] == runs[::-1]
    assert store.runs(project_id="another") == []
    assert len(store.runs(project_id="p")) == 3


def test_a_run_takes_the_number_that_it_is_given_unless_another_has_it(store: Store) -> None:
    session, another = store.new_session(), store.new_session()
    assert store.new_run(session, base_model="tiny", number=3) == f"{session}:train:3"
    assert store.new_run(session, base_model="tiny", number=0) == f"{session}:train:0"
    assert store.new_run(another, base_model="tiny", number=3) == f"{another}:train:3"
    assert store.new_run(session, base_model="tiny") == f"{session}:train:4"
    with pytest.raises(CheckpointExistsError, match=f"{session}:train:3"):
        store.new_run(session, base_model="large", number=3)
    assert store.run(f"{session}:train:3").base_model == "tiny"
    for number in (-1, 10**9, 1.5, True, "1"):
        with pytest.raises(CheckpointError, match="0 to 999999999"):
            store.new_run(session, base_model="tiny", number=number)  # type: ignore[arg-type]
    assert len(store.runs(session_id=session)) == 3


def test_a_plain_folder_stands_for_the_checkpoint_in_it(store: Store, run: str, clock: Clock, tmp_path: Path) -> None:
    path = save(store, run, "weights", "final", 5, ttl_seconds=HOUR)
    folder = store.locate(path).folder
    assert value_of(store, str(folder)) == 5
    foreign = write_checkpoint(tmp_path, "mine", tensors={"weights": {}}, manifest={"kind": "weights"})
    assert store.locate(str(foreign)).kind == "sampler_weights"
    assert store.locate(str(foreign)).record is None
    link = tmp_path / "link"
    link.symlink_to(folder)
    clock.turn(HOUR)
    for way in (folder, link):
        with pytest.raises(CheckpointNotFoundError, match="expired at 2026-01-01 01:00:00 UTC"):
            store.locate(str(way))


def test_no_other_folder_of_the_store_is_loaded(store: Store, run: str) -> None:
    final = store.locate(save(store, run, "weights", "final")).folder
    with store.saving(run, "weights", "next") as unfinished:
        write_checkpoint(unfinished.parent, unfinished.name, tensors={}, manifest={"kind": "training"})
        for folder in (unfinished, unfinished.parent, final.parent, final.parent.parent, store.root / "runs"):
            with pytest.raises(CheckpointError, match=r"is no checkpoint's folder|cannot be a name"):
                store.locate(str(folder))


def test_a_copy_is_a_checkpoint_of_its_own_in_a_run_of_its_own(store: Store, run: str) -> None:
    path = save(store, run, "sampler_weights", "final", 3, ttl_seconds=HOUR, user_metadata={"step": "9"})
    store.publish(path, True)
    copied = store.copy(path, project_id="archive", ttl_seconds=2 * HOUR)
    store.delete(path)
    assert value_of(store, copied) == 3
    stored = store.locate(copied)
    assert stored.run is not None
    assert stored.record is not None
    assert (stored.run.copy_of, stored.run.base_model, stored.run.lora_rank) == (path, "tiny", 4)
    assert (stored.kind, stored.name, stored.record.public) == ("sampler_weights", "final", False)
    assert stored.record.user_metadata == {"step": "9"}
    assert [one.run_id for one in store.runs(project_id="archive")] == [stored.run.run_id]


def test_errors_say_what_is_not_there_and_what_is(store: Store, run: str) -> None:
    path = save(store, run, "sampler_weights", "final")
    other = f"session-{'0' * 32}:train:0"
    for wrong, message in (
        (f"tinker://{other}/weights/final", f"there is no training run '{other}' in"),
        (f"tinker://{run}/sampler_weights/finl", f"its run has 1. Did you mean '{path}'"),
        (
            f"tinker://{run}/weight/final",
            "'weight' is none of weights, sampler_weights, external_weights. Did you mean",
        ),
        ("nowhere", "no such folder, and no tinker:// path"),
    ):
        with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
            store.locate(wrong)
    with pytest.raises(
        CheckpointError, match="is of kind sampler_weights, and this call takes weights: give a checkpoint that save_"
    ):
        store.locate(path, kind="weights")
    with pytest.raises(CheckpointExistsError, match="sampler_weights/final exists already"):
        save(store, run, "sampler_weights", "final")


@pytest.mark.parametrize("ttl", [0, HOUR - 1, 10 * YEAR + 1, -1, True, 1e4])
def test_a_ttl_out_of_the_hosted_services_bounds_is_refused_before_anything_is_written(
    store: Store, run: str, ttl: Any
) -> None:
    before = files_of(store.root)
    with pytest.raises(CheckpointError, match="is not from 3600 "):
        save(store, run, "weights", "final", ttl_seconds=ttl)
    assert files_of(store.root) == before


def test_metadata_that_is_not_text_is_refused_before_anything_is_written(store: Store, run: str) -> None:
    before = files_of(store.root)
    with pytest.raises(CheckpointError, match=r"user_metadata\.step: Input should be a valid string"):
        save(store, run, "weights", "final", user_metadata={"step": 3})
    assert files_of(store.root) == before


# -- names that lead elsewhere ------------------------------------------------------------------------------------------

ATTACKS = (
    "..",
    "../x",
    "../../../x",
    "/etc/passwd",
    "a/b",
    "a/../b",
    "",
    ".",
    ".hidden",
    "a\0b",
    "con",
    "a" * 200,
    "a\\b",
    "~",
)


def refused(store: Store, run: str, name: str) -> None:
    """Every way to use a name refuses it, and leaves the disk as it was."""
    before = files_of(store.root.parent)
    paths = [f"tinker://{run}/weights/{name}", f"tinker://{name}/weights/a", f"tinker://{run}/{name}/a"]
    ways = [lambda: save(store, run, "weights", name), lambda: save(store, name, "weights", "a")]
    ways += [lambda path=path: store.locate(path) for path in paths]
    ways += [lambda path=path: store.delete(path) for path in paths]
    ways += [lambda path=path: store.set_ttl(path, None) for path in paths]
    ways += [lambda path=path: store.publish(path, True) for path in paths]
    ways += [lambda: store.new_run(name, base_model="tiny"), lambda: store.sessions.get(name), lambda: store.run(name)]
    ways += [lambda: store.sessions.sampler(f"{name}:sample:0"), lambda: store.note_use(name)]
    for way in ways:
        with pytest.raises(CheckpointError):
            way()
    assert files_of(store.root.parent) == before


@pytest.mark.parametrize("name", ATTACKS)
def test_a_name_that_is_no_plain_name_is_refused_everywhere(store: Store, run: str, name: str) -> None:
    refused(store, run, name)


@settings(max_examples=15)
@given(name=st.text(max_size=12).filter(lambda text: not text.isascii() or not text.replace("-", "").isalnum()))
def test_no_text_leads_out_of_the_folder(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "root")
        run = store.new_run(store.new_session(), base_model="tiny")
        with contextlib.suppress(CheckpointError):
            save(store, run, "weights", name)
        (inside,) = Path(folder).iterdir()
        assert inside == store.root
        assert {path.relative_to(store.root).parts[0] for path in store.root.rglob("*")} == {"runs", "sessions"}
        for path in (f"tinker://{name}/weights/a", f"tinker://{run}/{name}/a"):
            with pytest.raises(CheckpointError):
                store.locate(path)


def test_a_link_in_place_of_a_checkpoint_is_not_followed_out_of_the_store(
    store: Store, run: str, tmp_path: Path
) -> None:
    path = save(store, run, "weights", "final")
    shutil.copytree(store.locate(path).folder, tmp_path / "elsewhere")
    shutil.rmtree(store.locate(path).folder)
    (tmp_path / "root" / "runs" / run.replace(":", ".") / "weights" / "final").symlink_to(tmp_path / "elsewhere")
    before = files_of(tmp_path / "elsewhere")
    for way in (store.locate, store.delete):
        with pytest.raises(CheckpointError, match="is a link that leads out of"):
            way(path)
    assert files_of(tmp_path / "elsewhere") == before


def test_a_checkpoint_that_was_copied_by_hand_does_not_answer_to_another_name(store: Store, run: str) -> None:
    folder = store.locate(save(store, run, "weights", "final")).folder
    shutil.copytree(folder, folder.with_name("copy"))
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint"):
        store.locate(f"tinker://{run}/weights/copy")
    assert [one.name for one in store.checkpoints()] == ["final"]


def test_a_damaged_record_is_named_and_hides_no_other(store: Store, run: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = save(store, run, "weights", "bad"), save(store, run, "weights", "good")
    record = store.locate(bad).folder / "tinker.json"
    record.write_bytes(record.read_bytes().replace(b"2026-01-01", b"2027-01-01"))
    with pytest.raises(CheckpointError, match=r"tinker\.json does not match the hash it carries"):
        store.locate(bad)
    assert [one.path for one in store.checkpoints()] == [good]
    assert "tinker.json does not match the hash" in caplog.text


# -- any order of calls, from two stores -------------------------------------------------------------------------------


class TwoStores(RuleBasedStateMachine):
    """Two stores on one root do what one dictionary does."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        self.clock, self.values = Clock(), itertools.count(1)
        self.stores = [Store(Path(self.folder.name), now=self.clock) for _ in range(2)]
        self.run_id = self.stores[0].new_run(self.stores[0].new_session(), base_model="tiny")
        self.live: dict[str, dict[str, Any]] = {}

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    def is_live(self, path: str) -> bool:
        ends = self.live.get(path, {"ends": datetime.min.replace(tzinfo=UTC)})["ends"]
        return ends is None or ends > self.clock.time

    def ends(self, ttl: int | None) -> datetime | None:
        return None if ttl is None else self.clock.time + timedelta(seconds=ttl)

    which = st.integers(0, 1)
    kind = st.sampled_from(list(OF_KIND))
    name = st.sampled_from(NAMES)
    ttl = st.none() | st.sampled_from([HOUR, 2 * HOUR, YEAR])

    def about_one(self, which: int, kind: Kind, name: str) -> tuple[Store, str]:
        return self.stores[which], self.stores[which].path_of(self.run_id, kind, name)

    @rule(which=which, kind=kind, name=name, ttl=ttl, overwrite=st.booleans())
    def save(self, which: int, kind: Kind, name: str, ttl: int | None, overwrite: bool) -> None:
        store, path = self.about_one(which, kind, name)
        value, metadata = next(self.values), {"name": name}
        options: dict[str, Any] = {"ttl_seconds": ttl, "overwrite": overwrite, "user_metadata": metadata}
        if self.is_live(path) and not overwrite:
            with pytest.raises(CheckpointExistsError):
                save(store, self.run_id, kind, name, value, **options)
        else:
            assert save(store, self.run_id, kind, name, value, **options) == path
            self.live[path] = {"value": value, "ends": self.ends(ttl), "public": False, "metadata": metadata}
            self.assert_clean()

    @rule(which=which, kind=kind, name=name, writes=st.booleans())
    def give_up_a_save(self, which: int, kind: Kind, name: str, writes: bool) -> None:
        with (
            contextlib.suppress(ZeroDivisionError),
            self.stores[which].saving(self.run_id, kind, name, overwrite=True) as path,
        ):
            if writes:
                write_checkpoint(path.parent, path.name, tensors={}, manifest={"kind": OF_KIND[kind]})
            raise ZeroDivisionError
        self.assert_clean()

    @rule(which=which, kind=kind, name=name)
    def delete(self, which: int, kind: Kind, name: str) -> None:
        store, path = self.about_one(which, kind, name)
        if not self.is_live(path):
            with pytest.raises(CheckpointNotFoundError):
                store.delete(path)
        else:
            store.delete(path)
            del self.live[path]
            self.assert_clean()

    @rule(which=which, kind=kind, name=name, ttl=ttl)
    def set_ttl(self, which: int, kind: Kind, name: str, ttl: int | None) -> None:
        store, path = self.about_one(which, kind, name)
        if not self.is_live(path):
            with pytest.raises(CheckpointNotFoundError):
                store.set_ttl(path, ttl)
        else:
            store.set_ttl(path, ttl)
            self.live[path]["ends"] = self.ends(ttl)

    @rule(which=which, kind=kind, name=name, public=st.booleans())
    def publish(self, which: int, kind: Kind, name: str, public: bool) -> None:
        store, path = self.about_one(which, kind, name)
        if not self.is_live(path):
            with pytest.raises(CheckpointNotFoundError):
                store.publish(path, public)
        elif self.live[path]["public"] == public:
            with pytest.raises(CheckpointExistsError, match="already"):
                store.publish(path, public)
        else:
            store.publish(path, public)
            self.live[path]["public"] = public

    @rule(hours=st.integers(1, 3))
    def wait(self, hours: int) -> None:
        self.clock.turn(hours * HOUR)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.live)))
        for store in self.stores:
            for way in (path, str(self.folder_of(path))):
                if self.is_live(path):
                    assert value_of(store, way) == self.live[path]["value"]
                else:
                    with pytest.raises(CheckpointNotFoundError):
                        store.locate(way)

    @invariant()
    def both_list_what_is_live(self) -> None:
        for store in self.stores:
            listed = {one.path: one for one in store.checkpoints(self.run_id)}
            assert set(listed) == {path for path in self.live if self.is_live(path)}
            for path, one in listed.items():
                expected = self.live[path]
                assert (one.public, one.user_metadata) == (expected["public"], expected["metadata"])
                assert (one.expires_at is None) == (expected["ends"] is None)
                if one.expires_at is not None:
                    assert abs(one.expires_at - expected["ends"]) < timedelta(seconds=1)
            assert [one.path for one in store.checkpoints()] == list(listed)

    def folder_of(self, path: str) -> Path:
        name = parsed(path)
        return self.stores[0].root / "runs" / name.run_id.replace(":", ".") / name.kind / name.name

    def assert_clean(self) -> None:
        """After a write nothing is left of what is over, nor of the write."""
        assert hidden(self.stores[0].root) == []
        for path in list(self.live):
            if not self.is_live(path):
                assert not self.folder_of(path).exists()
                del self.live[path]


TestTwoStores = TwoStores.TestCase
TestTwoStores.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)


def test_a_deleted_checkpoint_does_not_come_back_from_what_a_dead_writer_had_set_aside(store: Store, run: str) -> None:
    folder = store.locate(path := save(store, run, "weights", "a", 1)).folder
    aside = folder.with_name(f".a.old-{'0' * 32}")
    shutil.copytree(folder, aside)
    shutil.rmtree(folder)
    assert value_of(store, path) == 1, "one that was being replaced is put back"
    shutil.copytree(folder, aside)
    store.delete(path)
    for way in (store.locate, store.delete):
        with pytest.raises(CheckpointNotFoundError):
            way(path)
    assert store.checkpoints() == []


def test_a_save_goes_on_where_an_expired_checkpoint_cannot_be_removed(
    store: Store, run: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = save(store, run, "weights", "old", ttl_seconds=HOUR)
    clock.turn(HOUR)
    monkeypatch.setenv(disk.FAILPOINT, "eio@1:rename")
    monkeypatch.setattr(disk, "hits", {})
    new = save(store, run, "sampler_weights", "new")
    assert "an expired checkpoint stays for now" in caplog.text
    assert [one.path for one in store.checkpoints()] == [new]
    with pytest.raises(CheckpointNotFoundError, match="expired"):
        store.locate(old)
    store.delete(new)
    assert not (store.root / "runs" / run.replace(":", ".") / "weights" / "old").exists()


def test_samplers_are_numbered_on_after_a_line_that_a_dead_writer_did_not_finish(store: Store) -> None:
    session = store.new_session()
    store.sessions.new_sampler(session, base_model="tiny")
    lines = store.root / "sessions" / session / "samplers.jsonl"
    lines.write_text(lines.read_text() + '{"sampler_id":"')
    last = store.sessions.new_sampler(session, base_model="other")
    assert last == f"{session}:sample:2"
    assert [one.base_model for one in store.sessions.samplers(session)] == ["tiny", "other"]
    assert store.sessions.sampler(last).base_model == "other"


# -- several at once ---------------------------------------------------------------------------------------------------


def at_once(*jobs: Any) -> list[Any]:
    """What each of several threads returned or raised."""
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(position: int) -> None:
        start.wait(60)
        try:
            results[position] = jobs[position]()
        except CheckpointError as error:
            results[position] = error

    threads = [threading.Thread(target=work, args=(position,)) for position in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_of_savers_of_one_name_one_wins_and_the_others_are_told(store: Store, run: str) -> None:
    results = at_once(*[lambda value=value: save(Store(store.root), run, "weights", "a", value) for value in range(5)])
    (won,) = [value for value, result in enumerate(results) if isinstance(result, str)]
    assert all(isinstance(result, CheckpointExistsError) for value, result in enumerate(results) if value != won)
    assert value_of(store, f"tinker://{run}/weights/a") == won
    assert hidden(store.root) == []


def test_runs_that_begin_at_once_in_one_session_have_ids_of_their_own(store: Store) -> None:
    session = store.new_session()
    runs = at_once(*[lambda: Store(store.root).new_run(session, base_model="tiny") for _ in range(6)])
    assert sorted(runs) == [f"{session}:train:{number}" for number in range(6)]


def test_of_runs_that_ask_for_one_number_at_once_one_has_it(store: Store) -> None:
    session = store.new_session()
    ask = [lambda: Store(store.root).new_run(session, base_model="tiny", number=7) for _ in range(5)]
    results = at_once(*ask)
    assert [one for one in results if isinstance(one, str)] == [f"{session}:train:7"]
    assert sum(isinstance(one, CheckpointExistsError) for one in results) == 4


def test_changes_of_one_record_at_once_are_all_kept(store: Store, run: str) -> None:
    path = save(store, run, "weights", "a", user_metadata={"k": "v"})
    results = at_once(lambda: store.publish(path, True), lambda: store.set_ttl(path, HOUR), lambda: store.note_use(run))
    assert results == [None, None, None]
    record = store.locate(path).record
    assert record is not None
    assert (record.public, record.expires_at is None, record.user_metadata) == (True, False, {"k": "v"})


# -- failing disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def failpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def on(setting: str | None) -> None:
        disk.hits.clear()
        monkeypatch.delenv(disk.FAILPOINT, raising=False)
        if setting is not None:
            monkeypatch.setenv(disk.FAILPOINT, setting)

    yield on
    on(None)


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_wherever_the_disk_fails_the_old_or_the_new_one_is_whole_and_the_caller_is_told(
    store: Store, run: str, action: str, failpoint: Any
) -> None:
    path, calls, number = save(store, run, "weights", "a", 1), 0, 0
    for number in itertools.count(1):
        failpoint(f"{action}@{number}")
        try:
            save(store, run, "weights", "a", number + 1, overwrite=True)
            told = False
        except CheckpointError:
            told = True
        reached = disk.hits.get(f"{action}@{number}", 0) >= number
        failpoint(None)
        value = value_of(store, path)
        assert value == number + 1 or told, "a save that says nothing has saved"
        assert [one.path for one in store.checkpoints()] == [path]
        save(store, run, "weights", "b", overwrite=True)
        store.delete(f"tinker://{run}/weights/b")
        assert hidden(store.root) == []
        if not reached:
            break
        if not told or value != number + 1:
            calls += 1
        save(store, run, "weights", "a", 1, overwrite=True)
    assert number > 10
    assert calls > 8
