"""`RestClient` and `AdminClient` answer from the folder, with the SDK's names, arguments and exceptions."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import torch

from lossbook.datums.errors import CheckpointError
from lossbook.integrations.tinker import errors, types
from lossbook.integrations.tinker.process import Session
from lossbook.integrations.tinker.rest import AdminClient, RestClient
from lossbook.integrations.tinker.settings import configure, current
from lossbook.integrations.tinker.store import Kind, Store
from lossbook.trainer.checkpoint.folder import write_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # inside the SDK, not ours to mend
    sdk = pytest.importorskip("tinker", reason="the official SDK comes with lossbook[dev]")

HOUR = 3600


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def client(store: Store) -> RestClient:
    return RestClient(Session(store.new_session(), store, current()))


@pytest.fixture
def run(store: Store) -> str:
    session = store.new_session(project_id="p", user_metadata={"lab": "one"}, display_name="Nightly run of May")
    return store.new_run(
        session, base_model="tiny", lora_rank=4, train_unembed=True, user_metadata={"renderer": "plain"}
    )


def save(store: Store, run: str, kind: Kind, name: str, **options: Any) -> str:
    with store.saving(run, kind, name, **options) as path:
        if kind == "external_weights":
            path.mkdir()
            (path / "adapter_config.json").write_text("{}")
        else:
            manifest = {"kind": "training" if kind == "weights" else "weights"}
            write_checkpoint(path.parent, path.name, tensors={"weights": {"a": torch.ones(3)}}, manifest=manifest)
    return store.path_of(run, kind, name)


# -- the surface --------------------------------------------------------------------------------------------------------


def public(kind: type) -> dict[str, Any]:
    return {name: method for name, method in vars(kind).items() if not name.startswith("_") and callable(method)}


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("ours", "theirs"), [(RestClient, sdk.RestClient), (AdminClient, sdk.AdminClient)])
def test_every_method_of_the_sdk_is_there_with_its_arguments_and_no_other(ours: type, theirs: type) -> None:
    mine, official = public(ours), public(theirs)
    assert mine.keys() == official.keys()
    assert parameters(ours.__init__) == parameters(theirs.__init__)
    for name, method in official.items():
        assert parameters(mine[name]) == parameters(method), name
        assert inspect.iscoroutinefunction(mine[name]) == name.endswith("_async"), name


# -- runs and checkpoints -----------------------------------------------------------------------------------------------


def test_a_run_is_described_with_its_last_checkpoint_of_each_kind(store: Store, client: RestClient, run: str) -> None:
    for name in ("one", "two"):
        save(store, run, "weights", name)
    sampler = save(store, run, "sampler_weights", "two", ttl_seconds=HOUR, user_metadata={"step": "2"})
    told = client.get_training_run(run).result()
    assert isinstance(told, types.TrainingRun)
    assert (told.training_run_id, told.base_model, told.is_lora, told.lora_rank) == (run, "tiny", True, 4)
    assert told.user_metadata == {"renderer": "plain"}
    assert told.last_checkpoint is not None
    assert told.last_checkpoint.checkpoint_id == "weights/two"
    assert told.last_sampler_checkpoint is not None
    assert told.last_sampler_checkpoint.tinker_path == sampler
    assert told.last_sampler_checkpoint.user_metadata == {"step": "2"}
    assert client.get_training_run_by_tinker_path(f"tinker://{run}/weights/gone").result() == told


def test_checkpoints_are_listed_with_what_the_sdk_lists_and_in_pages(
    store: Store, client: RestClient, run: str
) -> None:
    before = datetime.now(UTC)
    paths = [
        save(store, run, "weights", "a"),
        save(store, run, "sampler_weights", "a", ttl_seconds=HOUR),
        save(store, run, "external_weights", "a"),
    ]
    listed = client.list_checkpoints(run).result().checkpoints
    assert [one.tinker_path for one in listed] == paths[::-1]
    assert [one.checkpoint_type for one in listed] == ["external", "sampler", "training"]
    assert all(before <= one.time <= datetime.now(UTC) for one in listed)
    folder = store.locate(paths[0]).folder
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "tinker.json")
    assert listed[2].size_bytes == size
    assert listed[2].expires_at is None
    assert listed[1].expires_at == listed[1].time + timedelta(hours=1)
    second = client.list_user_checkpoints(limit=2, offset=1).result()
    assert [one.tinker_path for one in second.checkpoints] == [paths[1], paths[0]]
    assert second.cursor == types.Cursor(offset=1, limit=2, total_count=3)


def test_runs_are_listed_by_project(store: Store, client: RestClient, run: str) -> None:
    other = store.new_run(store.new_session(), base_model="tiny")
    assert [one.training_run_id for one in client.list_training_runs().result().training_runs] == [other, run]
    only = client.list_training_runs(project_id="p").result()
    assert [one.training_run_id for one in only.training_runs] == [run]
    session = run.partition(":")[0]
    client.assign_session_project(session, "q").result()
    assert client.list_training_runs(project_id="p").result().cursor.total_count == 0
    assert client.list_training_runs(project_id="q").result().cursor.total_count == 1


def test_what_a_model_must_be_like_is_said_of_a_run_and_of_a_plain_folder(
    store: Store, client: RestClient, run: str, tmp_path: Path
) -> None:
    told = client.get_weights_info_by_tinker_path(save(store, run, "weights", "a")).result()
    assert (told.base_model, told.is_lora, told.lora_rank, told.train_unembed, told.train_mlp) == (
        "tiny",
        True,
        4,
        True,
        None,
    )
    lora = {"rank": 2, "alpha": 2.0, "train_mlp": True, "train_attn": False, "train_unembed": True}
    manifest = {"kind": "weights", "base_model": "tiny", "vocab_size": 260, "lora": lora}
    folder = str(write_checkpoint(tmp_path / "own", "mine", tensors={"weights": {}}, manifest=manifest))
    told = client.get_weights_info_by_tinker_path(folder).result()
    assert (told.base_model, told.is_lora, told.lora_rank, told.train_attn, told.train_mlp) == (
        "tiny",
        True,
        2,
        False,
        True,
    )


def test_a_checkpoint_is_published_given_a_life_and_deleted(store: Store, client: RestClient, run: str) -> None:
    path = save(store, run, "weights", "a")
    client.publish_checkpoint_from_tinker_path(path).result()
    assert client.list_checkpoints(run).result().checkpoints[0].public
    with pytest.raises(errors.ConflictError, match="is public already"):
        client.publish_checkpoint_from_tinker_path(path).result()
    client.unpublish_checkpoint_from_tinker_path(path).result()
    client.set_checkpoint_ttl_from_tinker_path(path, HOUR).result()
    assert client.list_checkpoints(run).result().checkpoints[0].expires_at is not None
    client.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert client.list_checkpoints(run).result().checkpoints[0].expires_at is None
    client.delete_checkpoint_from_tinker_path(path).result()
    assert client.list_checkpoints(run).result().checkpoints == []
    path = save(store, run, "weights", "a")
    client.delete_checkpoint(run, "weights/a").result()
    with pytest.raises(errors.NotFoundError, match="there is no checkpoint"):
        client.delete_checkpoint_from_tinker_path(path).result()


def test_a_copy_lies_in_the_project_that_it_was_copied_to(
    store: Store, client: RestClient, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(store, run, "sampler_weights", "final")
    monkeypatch.delenv("TINKER_PROJECT_ID", raising=False)
    with pytest.raises(ValueError, match="TINKER_PROJECT_ID"):
        client.copy_weights(path)
    monkeypatch.setenv("TINKER_PROJECT_ID", "archive")
    copied = client.copy_weights(path, ttl_seconds=HOUR).result()
    (there,) = client.list_training_runs(project_id="archive").result().training_runs
    assert there.last_sampler_checkpoint is not None
    assert there.last_sampler_checkpoint.tinker_path == copied
    assert client.copy_weights(path, "p", weights_access_token="of no use").result() != copied


def test_files_of_exported_weights_have_addresses(store: Store, client: RestClient, run: str) -> None:
    path = save(store, run, "external_weights", "out")
    urls = client.get_external_weights_urls(path).result().urls
    assert urls.keys() == {"adapter_config.json"}
    assert Path(url2pathname(urlparse(urls["adapter_config.json"]).path)).read_text() == "{}"
    with pytest.raises(errors.BadRequestError, match="is of kind weights, and this call takes external_weights"):
        client.get_external_weights_urls(save(store, run, "weights", "out")).result()


# -- sessions -----------------------------------------------------------------------------------------------------------


def test_a_session_names_its_runs_and_samplers(store: Store, client: RestClient, run: str) -> None:
    session = run.partition(":")[0]
    second = store.new_run(session, base_model="tiny")
    samplers = [
        store.sessions.new_sampler(session, base_model="tiny", model_path=path) for path in (None, "tinker://x")
    ]
    told = client.get_session(session).result()
    assert (told.training_run_ids, told.sampler_ids) == ([run, second], samplers)
    assert (told.user_metadata, told.display_name) == ({"lab": "one"}, "Nightly run of May")
    assert samplers == [f"{session}:sample:{number}" for number in range(2)]
    sampler = client.get_sampler(samplers[1]).result()
    assert (sampler.sampler_id, sampler.base_model, sampler.model_path) == (samplers[1], "tiny", "tinker://x")
    assert client.list_sessions(limit=1).result().sessions == [session]
    for missing in (lambda: client.get_session("session-1"), lambda: client.get_sampler(f"{session}:sample:7")):
        with pytest.raises(errors.NotFoundError):
            missing().result()


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ({}, True),
        ({"display_name": "may NIGHT"}, True),
        ({"display_name": "may june"}, False),
        ({"user_metadata": {"lab": "one"}}, True),
        ({"user_metadata": {"lab": "one", "other": "x"}}, False),
        ({"project_ids": ["p", "z"]}, True),
        ({"project_ids": ["z"]}, False),
        ({"owner": types.AccessibleSearchOwner()}, True),
        ({"owner": types.UserSearchOwner(owner_urns=["tml:user:somebody"])}, False),
        ({"statuses": [types.ClientFinishedSessionStatusQuery()]}, True),
        ({"statuses": [types.ClientFinishedSessionStatusQuery(reasons=["success"])]}, False),
        ({"statuses": [types.ClientFinishedSessionStatusQuery(reasons=["errored", "success"])]}, True),
        ({"statuses": [types.ActiveSessionStatusQuery()]}, False),
        ({"session_id": "session-of-somebody-else"}, False),
        ({"session_id": "session-of-somebody-else", "display_name": "nightly"}, True),
    ],
)
def test_a_search_gives_the_sessions_that_it_asks_for(
    store: Store, client: RestClient, run: str, query: dict[str, Any], matches: bool
) -> None:
    save(store, run, "weights", "a")
    session = run.partition(":")[0]
    store.sessions.finish(session, "errored", "boom")
    store.sessions.finish(session, "success")  # the first word counts
    given = {
        one.session_id: one for one in client.search_sessions(types.SessionSearchRequest(**query)).result().sessions
    }
    assert (session in given) == matches
    if matches:
        assert (given[session].checkpoints_count, given[session].project_id) == (1, "p")
        assert given[session].status == types.ClientSessionFinished(
            reason=types.ClientSessionFinishErrored(), detail="boom"
        )


def test_a_search_goes_through_all_sessions_in_pages_newest_first(store: Store, client: RestClient) -> None:
    everything = [one.session_id for one in store.sessions.all()]
    everything = [store.new_session() for _ in range(4)][::-1] + everything
    request, pages = types.SessionSearchRequest(limit=2), []
    while True:
        page = client.search_sessions(request).result()
        pages.append([one.session_id for one in page.sessions])
        assert all(isinstance(one.status, types.SessionActive) for one in page.sessions)
        if page.next_cursor is None:
            break
        request = request.model_copy(update={"cursor": page.next_cursor})
    assert pages == [everything[:2], everything[2:4], everything[4:]]


# -- how it answers -----------------------------------------------------------------------------------------------------


def test_an_answer_is_a_future_and_its_twin_a_coroutine(client: RestClient, run: str) -> None:
    async def ask() -> list[Any]:
        return [
            await client.get_training_run(run),
            await client.get_training_run(run).result_async(),
            await client.get_training_run_async(run),
            await client.get_training_run_by_tinker_path_async(f"tinker://{run}/weights/a"),
        ]

    expected = client.get_training_run(run).result()
    assert expected == client.get_training_run(run).future().result()
    assert asyncio.run(ask()) == [expected] * 4


def test_a_failure_is_raised_by_the_future_with_the_status_of_the_hosted_service(client: RestClient, run: str) -> None:
    future = client.get_training_run(f"session-{'0' * 32}:train:0")
    with pytest.raises(errors.NotFoundError, match="there is no training run") as caught:
        future.result()
    assert caught.value.status_code == 404
    assert isinstance(caught.value.__cause__, CheckpointError)
    with pytest.raises(ValueError, match="Invalid tinker path"):
        client.delete_checkpoint_from_tinker_path("weights/a")
    for wrong in (lambda: client.list_sessions(limit=0), lambda: client.list_user_checkpoints(offset=-1)):
        with pytest.raises(errors.BadRequestError, match="a limit is at least 1"):
            wrong().result()
    with pytest.raises(errors.BadRequestError, match="ttl_seconds=5 is not from 3600"):
        client.set_checkpoint_ttl_from_tinker_path(f"tinker://{run}/weights/a", 5).result()


def test_what_needs_the_hosted_service_is_refused_by_name_with_the_nearest(client: RestClient) -> None:
    for refuse, nearest in (
        (lambda: client.export_session_trace("session-1"), r"export_session_trace.*torch\.profiler"),
        (lambda: client.get_audit_log(), "get_audit_log.*list_user_checkpoints"),
        (lambda: client.get_billing_usage("2026-01-01", "2026-02-01"), "get_billing_usage.*storage_usage"),
    ):
        with pytest.raises(errors.BadRequestError, match=nearest):
            refuse().result()


def test_stored_bytes_are_counted_by_project(store: Store, client: RestClient, run: str) -> None:
    for name in ("a", "b"):
        save(store, run, "weights", name)
    save(store, store.new_run(store.new_session(), base_model="tiny"), "weights", "a")
    usage = client.get_current_checkpoint_storage_usage().result().data
    assert [(one.project_id, one.checkpoint_count) for one in usage] == [(None, 1), ("p", 2)]
    (only,) = client.get_current_checkpoint_storage_usage("p").result().data
    assert only.size_bytes == sum(one.size_bytes or 0 for one in client.list_checkpoints(run).result().checkpoints)


def test_models_at_hand_are_named(client: RestClient) -> None:
    names = [one.model_name for one in client.get_server_capabilities().result().supported_models]
    assert "tiny" in names
    assert client.whoami().result().user_urn.startswith("lossbook:user:")


def test_a_client_that_no_service_client_made_reads_the_settings_root(tmp_path: Path) -> None:
    before = current().root
    try:
        configure(root=tmp_path / "elsewhere")
        session = Store(tmp_path / "elsewhere").new_session()
        assert RestClient(base_url="https://somewhere", api_key="tml-x").list_sessions().result().sessions == [session]
        assert AdminClient().get_current_checkpoint_storage_usage().result().data == []
    finally:
        configure(root=before)
