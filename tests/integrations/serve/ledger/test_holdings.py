"""Sessions, models, samplers and losses: each is its owner's, within limits, and there again after a restart."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.ledger.tables import tables
from lossbook.integrations.serve.operations import Answer, Operation
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits

MODEL = "session:train:0"


def step(number: int, scope: str = MODEL, kind: Any = "optim_step") -> Operation:
    return Operation("ann", kind, scope, number, "seq", "body", None)


# --- owners and limits ------------------------------------------------------------------------------------------------


def test_what_another_owner_has_is_not_there_in_the_same_words_as_what_nobody_has(ledger: Ledger) -> None:
    ledger.add_session("ann", "session", {"tags": ["Σ", "\0"]})
    ledger.add_model("ann", MODEL, "session", {"rank": 4})
    ledger.add_sampler("ann", "sampler", "session", {"path": "tinker://x"})
    ledger.add_loss("ann", "loss", "session", {"nodes": []})
    assert ledger.session("ann", "session").facts == {"tags": ["Σ", "\0"]}
    assert ledger.model("ann", MODEL).facts == {"rank": 4}
    assert ledger.sampler("ann", "sampler").facts == {"path": "tinker://x"}
    assert ledger.loss("ann", "loss").facts == {"nodes": []}
    for get, own_id in (
        (ledger.session, "session"),
        (ledger.model, MODEL),
        (ledger.sampler, "sampler"),
        (ledger.loss, "loss"),
        (ledger.heartbeat, "session"),
        (ledger.finish_session, "session"),
    ):
        said = set()
        for asked in (own_id, "none"):
            with pytest.raises(Refused) as refused:
                get("bob", asked)
            said.add((refused.value.status, refused.value.message))
        assert len(said) == 1, said
        assert said.pop()[0] == 404
    for listed in (ledger.sessions, ledger.models, ledger.samplers, ledger.losses):
        assert len(listed("ann")) == 1
        assert listed("bob") == []


def test_what_is_made_twice_with_one_id_is_the_first(ledger: Ledger, clock: Any) -> None:
    firsts = [
        ledger.add_session("ann", "session", {"a": 1}, idempotency_key="key"),
        ledger.add_model("ann", MODEL, "session", {"a": 1}),
        ledger.add_sampler("ann", "sampler", "session", {"a": 1}, in_memory=True),
        ledger.add_loss("ann", "loss", "session", {"a": 1}),
    ]
    clock.now += 5
    again = [
        ledger.add_session("ann", "other", {"a": 2}, idempotency_key="key"),
        ledger.add_model("ann", MODEL, "session", {"a": 2}),
        ledger.add_sampler("ann", "sampler", "session", {"a": 2}),
        ledger.add_loss("ann", "loss", "session", {"a": 2}),
    ]
    assert again == firsts
    assert ledger.add_session("bob", "bobs", idempotency_key="key").session_id == "bobs", (
        "each owner has keys of its own"
    )


def test_each_limit_is_named_and_keeps_no_other_owner_from_working(url: str) -> None:
    ledger = Ledger(url, limits=Limits(sessions_per_key=2, models_per_key=2, losses_per_session=1))
    for name in ("one", "two"):
        ledger.add_session("ann", name)
        ledger.add_model("ann", f"{name}:train:0", name, {})
    ledger.add_loss("ann", "loss", "one", {})
    for call, limit, status in (
        (lambda owner: ledger.add_session(owner, f"{owner}s"), "sessions_per_key", 429),
        (lambda owner: ledger.add_model(owner, f"{owner}s:train:1", f"{owner}s", {}), "models_per_key", 429),
        (lambda owner: ledger.add_loss(owner, "another", "one", {}), "losses_per_session", 400),
    ):
        with pytest.raises(Refused, match=limit) as refused:
            call("ann")
        assert refused.value.status == status
        call("bob")
    ledger.finish_session("ann", "one")
    ledger.add_session("ann", "three")
    ledger.add_model("ann", "three:train:0", "three", {})
    ledger.add_loss("ann", "another", "two", {})
    ledger.close()


# --- the life of a session --------------------------------------------------------------------------------------------


def test_a_session_ends_once_and_takes_its_models_with_it(ledger: Ledger) -> None:
    ledger.add_session("ann", "session")
    ledger.add_model("ann", MODEL, "session", {})
    ledger.add_model("ann", "other:train:0", "other", {})
    assert ledger.finish_session("ann", "session", "errored")
    assert not ledger.finish_session("ann", "session", "success")
    assert ledger.session("ann", "session").reason == "errored"
    assert [model.state for model in ledger.models("ann")] == ["ended", "memory"]
    assert [model.model_id for model in ledger.models("ann", session_id="session")] == [MODEL]
    with pytest.raises(Refused, match="create another") as refused:
        ledger.heartbeat("ann", "session")
    assert refused.value.status == 410, "which stops the client's heartbeats"


def test_a_session_without_heartbeats_expires_and_time_without_a_server_does_not_count(
    ledger: Ledger, url: str, clock: Any
) -> None:
    ledger.add_session("ann", "silent")
    ledger.add_session("bob", "alive")
    clock.now += 1700
    ledger.heartbeat("bob", "alive")
    assert ledger.expired_sessions() == []
    clock.now += 200
    assert [session.session_id for session in ledger.expired_sessions()] == ["silent"]
    ledger.finish_session("ann", "silent", "expired")
    assert ledger.expired_sessions() == []
    ledger.close()
    clock.now += 100_000
    again = Ledger(url, clock=clock)
    again.recover()
    assert again.expired_sessions() == []
    clock.now += 1801
    assert [session.session_id for session in again.expired_sessions()] == ["alive"]
    again.close()


# --- a restart --------------------------------------------------------------------------------------------------------


def restarted(ledger: Ledger, url: str, clock: Any) -> Ledger:
    """Another process that opens what this one left."""
    ledger.close()
    return Ledger(url, clock=clock)


@pytest.mark.parametrize(
    ("changes", "is_lost"),
    [
        pytest.param({}, False, id="as it was made: it is made again"),
        pytest.param({"executed_seq": 4, "durable_seq": 4}, False, id="saved after its last step"),
        pytest.param({"executed_seq": 5, "durable_seq": 4}, True, id="a step after it was saved"),
        pytest.param({"executed_seq": 1}, True, id="a step, never saved"),
        pytest.param({"executed_seq": 4, "durable_seq": 4, "dirty": True}, True, id="saved, but not its gradients"),
    ],
)
def test_a_model_is_lost_when_something_it_did_was_in_memory_alone(
    ledger: Ledger, url: str, clock: Any, changes: Any, is_lost: bool
) -> None:
    ledger.add_session("ann", "session")
    ledger.add_model("ann", MODEL, "session", {})
    ledger.set_model(MODEL, **changes)
    ledger = restarted(ledger, url, clock)
    recovered = ledger.recover()
    assert [model.model_id for model in (recovered.lost if is_lost else recovered.parked)] == [MODEL]
    assert recovered.parked == () or recovered.lost == ()
    assert ledger.model("ann", MODEL).state == ("lost" if is_lost else "parked")
    ledger = restarted(ledger, url, clock)
    assert ledger.recover().lost == (), "it is told once"
    assert ledger.model("ann", MODEL).state == ("lost" if is_lost else "parked")
    ledger.close()


def test_open_requests_fail_and_name_the_last_checkpoint_and_what_was_answered_stays(
    ledger: Ledger, url: str, clock: Any
) -> None:
    ledger.add_session("ann", "session")
    ledger.add_model("ann", MODEL, "session", {})
    ledger.add_model("ann", "fresh:train:0", "session", {})
    saved, ran, running, waiting = (ledger.submit(step(number)).request_id for number in (1, 2, 3, 4))
    of_another = ledger.submit(step(1, "fresh:train:0", "forward")).request_id
    of_none = ledger.submit(step(1, "session", "create_model")).request_id
    path = "tinker://session:train:0/weights/a"
    ledger.begin([saved, ran, running])
    kept = {"durable_seq": 1, "durable_path": "parked/0", "checkpoint": path, "checkpoint_seq": 1}
    ledger.finish(saved, Answer(b"saved"), model_id=MODEL, executed_seq=1, **kept)
    ledger.finish(ran, Answer(b"stepped"), model_id=MODEL, executed_seq=2)
    ledger = restarted(ledger, url, clock)
    assert set(ledger.recover().failed) == {running, waiting, of_another, of_none}
    assert ledger.answer("ann", saved) == Answer(b"saved")
    assert ledger.answer("ann", ran) == Answer(b"stepped"), (
        "it was applied and answered; the model says that it is lost"
    )
    for request_id, number in ((running, 3), (waiting, 4)):
        answer = ledger.answer("ann", request_id)
        assert answer is not None
        assert answer.category == "server"
        assert answer.error == (
            f"optim_step (request {number}): the server stopped before this was done, and does not run it again: model "
            f"{MODEL} was lost after request 2, when the server stopped. Its last checkpoint is {path} (request 1): create a "
            "training client from it"
        )
    answer = ledger.answer("ann", of_another)
    assert answer is not None
    assert str(answer.error).endswith(
        "Model fresh:train:0 is as it was created: send the request again, with a new number"
    )
    answer = ledger.answer("ann", of_none)
    assert answer is not None
    assert str(answer.error).endswith("send it again, with a new number")
    assert ledger.submit(step(3)).answer == ledger.answer("ann", running), "a retry does not run it either"
    assert ledger.begin([running, waiting]) == []
    ledger.close()


def test_samplers_that_were_in_memory_alone_are_lost_and_the_others_are_not(
    ledger: Ledger, url: str, clock: Any
) -> None:
    ledger.add_sampler("ann", "ephemeral", "session", {}, in_memory=True)
    ledger.add_sampler("ann", "written", "session", {}, in_memory=True)
    ledger.add_sampler("ann", "saved", "session", {"path": "tinker://a"})
    ledger.set_sampler("written", facts={"path": "parked/1"}, in_memory=False)
    ledger = restarted(ledger, url, clock)
    assert [sampler.sampler_id for sampler in ledger.recover().samplers] == ["ephemeral"]
    assert [ledger.sampler("ann", name).lost for name in ("ephemeral", "written", "saved")] == [True, False, False]
    assert ledger.sampler("ann", "written").facts == {"path": "parked/1"}
    ledger.close()


def test_models_of_ended_sessions_stay_ended(ledger: Ledger, url: str, clock: Any) -> None:
    ledger.add_session("ann", "session")
    ledger.add_model("ann", MODEL, "session", {})
    ledger.set_model(MODEL, executed_seq=3)
    ledger.finish_session("ann", "session")
    ledger = restarted(ledger, url, clock)
    assert ledger.recover().lost == ()
    assert ledger.model("ann", MODEL).state == "ended"
    ledger.close()


# --- age --------------------------------------------------------------------------------------------------------------


def rows(ledger: Ledger) -> dict[str, int]:
    """How many rows each table has."""
    with ledger._database.reading() as connection:
        return {
            name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for name, table in tables.tables.items()
            if name != "about"
        }


def test_of_a_session_that_ended_long_ago_nothing_is_left_and_others_are_as_they_were(
    ledger: Ledger, clock: Any
) -> None:
    def open_one(name: str) -> str:
        ledger.add_session("ann", name)
        ledger.add_model("ann", f"{name}:train:0", name, {})
        ledger.add_sampler("ann", f"{name}:sample:0", name, {})
        ledger.add_loss("ann", f"{name}-loss", name, {})
        for scope in (name, f"{name}:train:0", f"{name}:sample:0"):
            for number in (1, 2):
                taken = ledger.submit(step(number, scope))
                ledger.finish(taken.request_id, Answer(b"{}"))
        return name

    kept = open_one("open"), open_one("young")
    of_two = rows(ledger)
    ledger.finish_session("ann", open_one("old"))
    clock.now += 86_400 + 3_601
    ledger.prune()  # results expire
    clock.now += 86_400
    ledger.prune()  # and their rows are forgotten
    assert rows(ledger)["requests"] == 0
    ledger.finish_session("ann", kept[1])
    assert ledger.forget_sessions(3 * 86_400) == 0
    assert ledger.forget_sessions(2 * 86_400) == 1
    assert rows(ledger) == of_two | {"requests": 0, "forgotten": 6}
    assert [one.session_id for one in ledger.sessions("ann")] == list(kept)
    with pytest.raises(Refused, match="no session of this id"):
        ledger.session("ann", "old")
    with pytest.raises(Refused, match="too old"):
        ledger.submit(step(2, "young:train:0"))
