"""Two keys on one server: on every route, what is the other's is answered byte for byte like what nobody has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ..process import Server
from .client import Client, Model, backward_body, sample_body

pytestmark = pytest.mark.slow

#: Routes that have no id in path or body: what they answer is the caller's own, which is looked at below.
_OWN = {
    "GET /",
    "GET /api/status",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /api/v1/healthz",
    "GET /api/v1/get_server_capabilities",
    "GET /api/v1/training_runs",
    "GET /api/v1/checkpoints",
    "GET /api/v1/sessions",
    "POST /api/v1/client/config",
    "POST /api/v1/client/dynamic_config",
    "POST /api/v1/create_session",
    "POST /api/v1/telemetry",
    "POST /api/v1/sessions/search",
}
#: Routes that are not offered, whatever is asked.
_REFUSED = {"POST /api/v1/cancel_future", "POST /api/v1/retrieve_futures", "POST /api/v1/forward"}


@dataclass
class Ids:
    """Ids of all kinds."""

    session: str
    model: str
    request: str
    sampler: str
    name: str = "kept"

    @property
    def path(self) -> str:
        """A checkpoint."""
        return f"tinker://{self.model}/weights/{self.name}"


@pytest.fixture(scope="module")
def theirs(guarded: Server) -> Iterator[Ids]:
    """What Ann has: of every kind one."""
    from .conftest import ANN

    with Client(guarded.url, ANN) as ann:
        model = ann.model()
        model.train(1)
        for number, path in ((3, "save_weights"), (4, "save_weights_for_sampler"), (5, "save_weights_external")):
            ann.asked(path, {"model_id": model.model_id, "seq_id": number, "path": "kept"})
        request_id = ann.told("optim_step", model.step(2))["request_id"]
        yield Ids(model.session_id, model.model_id, request_id, ann.sampler(model.session_id))


def nobodys(ids: Ids) -> Ids:
    """Ids of the same form that nobody has."""
    session = f"session-{'0' * 32}"
    return Ids(session, f"{session}:train:0", "Q" * 22, f"{session}:sample:0")


def requests(ids: Ids) -> dict[str, list[tuple[str, str, Any]]]:
    """Requests of each route that name these ids: method, path and body."""
    session, model, path = ids.session, ids.model, ids.path
    run = f"/api/v1/training_runs/{model}"
    kept = [f"{run}/checkpoints/{kind}/{ids.name}" for kind in ("weights", "sampler_weights", "external_weights")]
    of_model = {"model_id": model, "seq_id": 90}
    lora = {"rank": 2}
    posts: dict[str, list[Any]] = {
        "session_heartbeat": [{"session_id": session}],
        "create_model": [{"session_id": session, "model_seq_id": 8, "base_model": "tiny", "lora_config": lora}],
        "get_info": [{"model_id": model}],
        "create_custom_loss": [
            {
                "session_id": session,
                "custom_loss_seq_id": 0,
                "name": "x",
                "inputs": [{"name": "logprobs", "rank": 1}],
                "graph": {"format": 1, "nodes": []},
            }
        ],
        "forward_backward": [backward_body(model, 90), backward_body(model, 90, forward=True)],
        "optim_step": [{**of_model, "adam_params": {}}],
        "save_weights": [{**of_model, "path": "x"}],
        "save_weights_for_sampler": [{**of_model, "path": "x"}, {**of_model, "sampling_session_seq_id": 3}],
        "save_weights_external": [{**of_model, "path": "x"}],
        "load_weights": [
            {**of_model, "path": path, "optimizer": True},
            {"session_id": session, "model_seq_id": 9, "path": path, "optimizer": True},
        ],
        "create_sampling_session": [
            {"session_id": session, "sampling_session_seq_id": 5, "base_model": "tiny"},
            {"session_id": session, "sampling_session_seq_id": 6, "model_path": path},
        ],
        "join_sampling_session": [{"sampling_session_id": ids.sampler}],
        "asample": [sample_body(ids.sampler, 0)],
        "retrieve_future": [{"request_id": ids.request}],
        "weights_info": [{"tinker_path": path}],
        "copy_weights": [{"source_path": path, "destination_project_id": "p"}],
    }
    asked: dict[str, list[tuple[str, str, Any]]] = {
        f"POST /api/v1/{name}": [("POST", f"/api/v1/{name}", body) for body in bodies] for name, bodies in posts.items()
    }
    finish = {"reason": {"type": "errored"}}
    one = "/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}"
    external = "/api/v1/training_runs/{run_id}/checkpoints/external_weights/{name}/external_weights_urls"
    return asked | {
        "POST /api/v1/sessions/{session_id}/finish": [("POST", f"/api/v1/sessions/{session}/finish", finish)],
        "PUT /api/v1/sessions/{session_id}/project": [
            ("PUT", f"/api/v1/sessions/{session}/project", {"project_id": "p"})
        ],
        "GET /api/v1/sessions/{session_id}": [("GET", f"/api/v1/sessions/{session}", None)],
        "GET /api/v1/samplers/{sampler_id}": [("GET", f"/api/v1/samplers/{ids.sampler}", None)],
        "GET /api/v1/training_runs/{run_id}": [("GET", run, None)],
        "GET /api/v1/training_runs/{run_id}/checkpoints": [("GET", f"{run}/checkpoints", None)],
        f"DELETE {one}": [("DELETE", place, None) for place in kept],
        f"PUT {one}/ttl": [("PUT", f"{place}/ttl", {"ttl_seconds": 3600}) for place in kept],
        f"POST {one}/publish": [("POST", f"{place}/publish", None) for place in kept],
        f"DELETE {one}/publish": [("DELETE", f"{place}/publish", None) for place in kept],
        f"GET {external}": [("GET", f"{kept[2]}/external_weights_urls", None)],
        "GET /api/v1/downloads/{owner}/{run_id}/{name}/{file}": [
            ("GET", f"/api/v1/downloads/local/{model}/{ids.name}/adapter_config.json?expires=9999999999", None)
        ],
    }


def sent(client: Client, method: str, path: str, body: Any) -> httpx.Response:
    """One request."""
    if isinstance(body, bytes):
        return client.http.request(method, path, content=body, headers={"content-type": "application/x-protobuf"})
    return client.http.request(method, path, json=body) if body is not None else client.http.request(method, path)


def routes(client: Client) -> set[str]:
    """All routes of the server's own document."""
    paths = client.get("/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_every_route_is_in_the_sweep(ben: Client, theirs: Ids) -> None:
    assert routes(ben) <= set(requests(theirs)) | _OWN | _REFUSED
    assert len(requests(theirs)) >= 28


def test_lists_pages_and_numbers_name_nothing_of_another(ben: Client, theirs: Ids) -> None:
    for route in sorted(_OWN - {"POST /api/v1/create_session"}):
        method, path = route.split(" ")
        body = {"sdk_version": "0.38.0"} if "config" in path else {} if method == "POST" else None
        answer = sent(ben, method, path, body)
        assert answer.status_code == 200, (route, answer.text)
        for one in (theirs.session, theirs.model, theirs.request, theirs.sampler):
            assert one not in answer.text, route


def test_what_is_anothers_is_answered_byte_for_byte_like_what_nobody_has(ben: Client, theirs: Ids) -> None:
    """Every id of Ann's, by every route, asked for by Ben: 404, and the ids themselves are the only difference."""
    own = ben.session()
    unknown = nobodys(theirs)
    seen = 0
    for route, asked in requests(theirs).items():
        for (method, path, body), (_, other_path, other_body) in zip(asked, requests(unknown)[route], strict=True):
            hers, nothing = sent(ben, method, path, body), sent(ben, method, other_path, other_body)
            assert (hers.status_code, nothing.status_code) == (404, 404), (route, hers.text, nothing.text)
            assert masked(hers, theirs) == masked(nothing, unknown), route
            seen += 1
    assert seen >= 35
    errors = []
    for number, ids in enumerate((theirs, unknown)):  # in a session of his own he may ask; the promise fails alike
        load = {"session_id": own, "model_seq_id": number, "path": ids.path, "optimizer": True}
        told = ben.outcome(ben.told("load_weights", load)["request_id"])
        errors.append((told["category"], mask(told["error"], ids)))
    assert errors[0] == errors[1]


def masked(answer: httpx.Response, ids: Ids) -> tuple[str, list[tuple[str, str]]]:
    """A body and headers without the ids that were asked for, and without what is of one answer alone."""
    alone = ("x-request-id", "date", "content-length")
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in alone)
    return mask(answer.text, ids), headers


def mask(text: str, ids: Ids) -> str:
    """A text with ID for each id."""
    for one in (ids.path, ids.model, ids.sampler, ids.session, ids.request):
        text = text.replace(one, "ID")
    return text


def test_what_was_asked_by_another_changed_nothing(ann: Client, theirs: Ids) -> None:
    checkpoints = ann.get(f"/api/v1/training_runs/{theirs.model}/checkpoints").json()["checkpoints"]
    assert len(checkpoints) == 3
    assert not any(one["public"] or one.get("expires_at") for one in checkpoints)
    assert ann.get(f"/api/v1/sessions/{theirs.session}").json()["training_run_ids"] == [theirs.model]
    Model(ann, theirs.model).train(6)


def test_the_address_of_anothers_file_is_no_address_without_its_signature(
    guarded: Server, ann: Client, theirs: Ids
) -> None:
    place = f"/api/v1/training_runs/{theirs.model}/checkpoints/external_weights/kept/external_weights_urls"
    url = ann.get(place).json()["urls"]["adapter_config.json"]
    with Client(guarded.url) as anyone:
        assert anyone.get(url).status_code == 200
        for other in (
            url.replace("adapter_config.json", "adapter_model.safetensors"),
            url.replace("expires=", "expires=9"),
            url[:-1] + ("0" if url[-1] != "0" else "1"),
            url.replace("adapter_config.json", "..%2f..%2frecord.json"),
        ):
            assert anyone.get(other).status_code == 404, other
