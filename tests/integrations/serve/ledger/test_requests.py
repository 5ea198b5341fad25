"""One number, one request, one execution, one answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import PROTOBUF, Answer, Operation
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits

MODEL = "session:train:0"
DAY = 86_400


def operation(number: int = 1, kind: Any = "optim_step", *, body: str = "body", **changes: Any) -> Operation:
    counter = {"create_model": "model", "create_custom_loss": "loss", "sample": "sample"}.get(kind, "seq")
    fields = {"owner": "ann", "scope": MODEL, "counter": counter, "payload": None, **changes}
    return Operation(kind=kind, number=number, body_hash=body, **fields)


def done(ledger: Ledger, *args: Any, answer: Answer | None = None, **kwargs: Any) -> str:
    """The id of a request that was taken, run and answered."""
    request_id = ledger.submit(operation(*args, **kwargs)).request_id
    assert ledger.begin([request_id]) == [request_id]
    assert ledger.finish(request_id, answer or Answer(b"result"))
    return request_id


@pytest.mark.parametrize(
    "kind",
    ["forward_backward", "optim_step", "create_model", "save_weights", "create_custom_loss", "load_weights", "sample"],
)
def test_the_same_request_again_has_the_first_ones_id_and_answer_and_runs_once(ledger: Ledger, kind: str) -> None:
    first = ledger.submit(operation(kind=kind))
    again = ledger.submit(operation(kind=kind))
    assert first.is_new
    assert not again.is_new
    assert again.request_id == first.request_id
    assert ledger.begin([first.request_id, again.request_id]) == [first.request_id]
    assert ledger.begin([first.request_id]) == []
    answer = Answer(b"\x00\xff result", PROTOBUF)
    ledger.finish(first.request_id, answer)
    assert ledger.submit(operation(kind=kind)) == again.__class__(first.request_id, False, answer)
    assert ledger.begin([first.request_id]) == []


def test_fifty_threads_that_send_one_request_at_once_make_one_row_and_get_equal_answers(ledger: Ledger) -> None:
    def client(_: int) -> tuple[str, list[str]]:
        submission = ledger.submit(operation())
        return submission.request_id, ledger.begin([submission.request_id])

    with ThreadPoolExecutor(50) as pool:
        submissions = list(pool.map(client, range(50)))
        ids = {request_id for request_id, _ in submissions}
        executed = [one for _, begun in submissions for one in begun]
        assert len(ids) == 1
        assert executed == list(ids), "it runs once"
        (request_id,) = ids
        ledger.finish(request_id, Answer(b"one"))
        answers = list(pool.map(lambda _: ledger.answer("ann", request_id), range(50)))
    assert answers == [Answer(b"one")] * 50
    assert ledger.numbers("ann", MODEL, "seq") == {1}
    assert ledger.open_requests() == 0


@pytest.mark.parametrize(
    ("changes", "said"), [({"body": "other"}, "another body"), ({"kind": "forward"}, "optim_step")]
)
@pytest.mark.parametrize("is_done", [False, True])
def test_a_number_with_another_request_is_refused_for_good(
    ledger: Ledger, changes: dict[str, Any], said: str, is_done: bool
) -> None:
    request_id = done(ledger, 1) if is_done else ledger.submit(operation(1)).request_id
    with pytest.raises(Refused, match=said) as refused:
        ledger.submit(operation(1, **changes))
    assert refused.value.status == 400, "409 is sent again for five minutes"
    assert ledger.submit(operation(1)).request_id == request_id


def test_a_response_that_got_lost_changes_nothing_but_that_it_is_asked_for_again(ledger: Ledger) -> None:
    ledger.add_model("ann", MODEL, "session", {})
    request_id = ledger.submit(operation(1)).request_id
    for number in (1, 2):  # the second time, what the first returned was lost on the way
        if ledger.begin([request_id]):
            ledger.finish(request_id, Answer(b"stepped"), model_id=MODEL, executed_seq=number)
        request_id = ledger.submit(operation(1)).request_id
    assert ledger.answer("ann", request_id) == Answer(b"stepped")
    assert ledger.model("ann", MODEL).executed_seq == 1


def test_a_second_answer_is_dropped_with_its_changes(ledger: Ledger) -> None:
    ledger.add_model("ann", MODEL, "session", {})
    request_id = done(ledger, 1)
    assert not ledger.finish(request_id, Answer(b"late"), model_id=MODEL, executed_seq=9)
    assert ledger.answer("ann", request_id) == Answer(b"result")
    assert ledger.model("ann", MODEL).executed_seq == 0


@pytest.mark.parametrize("category", ["user", "server"])
def test_a_failed_request_fails_the_same_way_as_often_as_it_is_fetched(ledger: Ledger, category: Any) -> None:
    failed = Answer(error="datum 3 of 4: weights add up to 0", category=category)
    request_id = done(ledger, 1, answer=failed)
    for _ in range(2):
        assert ledger.answer("ann", request_id) == failed
        ledger.fetched(request_id)
    assert ledger.submit(operation(1)).answer == failed


def test_the_text_of_an_error_may_have_what_databases_do_not_take(ledger: Ledger) -> None:
    request_id = done(ledger, 1, answer=Answer(error="bad token '\ud800' and '\0', Σ", category="user"))
    answer = ledger.answer("ann", request_id)
    assert answer is not None
    assert answer.error == "bad token '?' and '�', Σ"


def test_ids_cannot_be_guessed(ledger: Ledger) -> None:
    ids = [ledger.submit(operation(number)).request_id for number in range(20)]
    assert len(set(ids)) == 20
    assert all(len(one) == 22 for one in ids), "128 bits"
    assert len({one[:4] for one in ids}) > 10


@pytest.mark.parametrize(
    "request_id",
    ["", "abc", "-1", " 7 ", "1_0", "٣", "9" * 31, "a" * 22, "a" * 10_000, "\0" * 22, "\ud800" * 22, "'; --", None, 7],
)
def test_what_is_no_id_is_not_there(ledger: Ledger, request_id: Any) -> None:
    with pytest.raises(Refused) as refused:
        ledger.answer("ann", request_id)
    assert refused.value.status == 404


@pytest.mark.parametrize("scope", ["", "a b", "\0", "\ud800", "x" * 300, "é", None])
def test_what_is_no_models_id_is_not_there(ledger: Ledger, scope: Any) -> None:
    for call in (
        lambda: ledger.submit(operation(scope=scope)),
        lambda: ledger.used_up("ann", scope, "seq", 1),
        lambda: ledger.model("ann", scope),
        lambda: ledger.session("ann", scope),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 404


@pytest.mark.parametrize("number", [-1, 2**63, 10**30])
def test_numbers_that_no_database_holds_are_refused(ledger: Ledger, number: int) -> None:
    with pytest.raises(Refused, match=r"2\^63") as refused:
        ledger.submit(operation(number))
    assert refused.value.status == 400
    assert ledger.submit(operation(2**63 - 1)).is_new


def test_another_owner_sees_nothing_and_says_the_same_as_of_what_is_not_there(ledger: Ledger) -> None:
    request_id = done(ledger, 1)
    with pytest.raises(Refused) as of_another:
        ledger.answer("bob", request_id)
    with pytest.raises(Refused) as of_none:
        ledger.answer("bob", "a" * 22)
    assert (of_another.value.status, of_another.value.message) == (of_none.value.status, of_none.value.message)
    assert ledger.numbers("bob", MODEL, "seq") == set()
    assert ledger.submit(operation(1, owner="bob", body="other")).request_id != request_id


def test_counters_of_one_model_count_for_themselves(ledger: Ledger) -> None:
    of = [ledger.submit(operation(1, counter=counter)).request_id for counter in ("seq", "model", "loss", "sample")]
    assert len(set(of)) == 4


def test_an_unknown_model_takes_nothing_new_but_still_answers_what_it_took(ledger: Ledger) -> None:
    request_id = done(ledger, 1)
    assert ledger.submit(operation(1), model_known=False).request_id == request_id
    with pytest.raises(Refused, match=MODEL) as refused:
        ledger.submit(operation(2), model_known=False)
    assert refused.value.status == 404
    assert ledger.numbers("ann", MODEL, "seq") == {1}


def test_a_number_that_was_refused_is_no_gap_and_is_not_taken_later(ledger: Ledger) -> None:
    ledger.submit(operation(1))
    ledger.used_up("ann", MODEL, "seq", 2)
    ledger.used_up("ann", MODEL, "seq", 2)
    ledger.submit(operation(3))
    assert ledger.numbers("ann", MODEL, "seq") == {1, 2, 3}
    assert ledger.numbers("ann", MODEL, "seq", above=1) == {2, 3}
    assert ledger.highest("ann", MODEL, "seq") == 3
    assert ledger.highest("ann", "other", "seq") is None
    with pytest.raises(Refused, match="refused before") as refused:
        ledger.submit(operation(2))
    assert refused.value.status == 400


def test_a_request_that_was_taken_is_not_used_up_by_a_wrong_retry(ledger: Ledger) -> None:
    first = ledger.submit(operation(1))
    ledger.used_up("ann", MODEL, "seq", 1)
    assert ledger.submit(operation(1)).request_id == first.request_id
    assert ledger.begin([first.request_id]) == [first.request_id]


def test_too_many_open_requests_of_a_key_are_refused_for_now_and_others_go_on(url: str) -> None:
    ledger = Ledger(url, limits=Limits(requests_per_key=3))
    taken = [ledger.submit(operation(number)).request_id for number in range(3)]
    with pytest.raises(Refused, match="requests_per_key") as refused:
        ledger.submit(operation(3))
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    assert ledger.submit(operation(2)).request_id == taken[2], "a retry is no new request"
    assert ledger.submit(operation(3, owner="bob")).is_new
    assert (ledger.open_requests("ann"), ledger.open_requests("bob"), ledger.open_requests()) == (3, 1, 4)
    ledger.finish(taken[0], Answer())
    assert ledger.submit(operation(3)).is_new
    ledger.close()


# --- age --------------------------------------------------------------------------------------------------------------


def test_a_result_is_kept_for_an_hour_and_for_five_minutes_after_it_was_fetched(ledger: Ledger, clock: Any) -> None:
    fetched, unfetched, running = done(ledger, 1), done(ledger, 2), ledger.submit(operation(3)).request_id
    clock.now += 3500
    ledger.fetched(fetched)
    ledger.fetched("a" * 22)
    assert ledger.prune().expired == 0
    clock.now += 101
    assert ledger.prune().expired == 1
    assert ledger.answer("ann", fetched) == Answer(b"result"), "a client that lost the response asks again"
    with pytest.raises(Refused, match="expired"):
        ledger.answer("ann", unfetched)
    clock.now += 200
    assert ledger.prune().expired == 1
    with pytest.raises(Refused, match="expired"):
        ledger.answer("ann", fetched)
    clock.now += 10 * DAY
    ledger.prune()
    assert ledger.answer("ann", running) is None, "what is open never expires"


@pytest.mark.parametrize(("kind", "status"), [("optim_step", 404), ("sample", 410)])
def test_an_expired_result_is_gone_but_its_request_never_runs_again(
    ledger: Ledger, clock: Any, kind: str, status: int
) -> None:
    request_id = done(ledger, 1, kind)
    clock.now += 3601
    assert ledger.prune().expired == 1
    with pytest.raises(Refused, match="expired") as refused:
        ledger.answer("ann", request_id)
    assert refused.value.status == status
    again = ledger.submit(operation(1, kind))
    assert (again.request_id, again.is_new, again.answer) == (request_id, False, None)
    clock.now += DAY + 1
    assert ledger.prune().forgotten == 1
    with pytest.raises(Refused, match="too old") as refused:
        ledger.submit(operation(1, kind))
    assert refused.value.status == 400
    assert ledger.submit(operation(2, kind)).is_new


def test_a_forgotten_counter_goes_on_where_it_was(ledger: Ledger, clock: Any, new_url: Callable[[], str]) -> None:
    for number in (1, 2, 3):
        done(ledger, number)
    ledger.used_up("ann", MODEL, "seq", 4)
    clock.now += 3601
    ledger.prune()
    done(ledger, 5)
    clock.now += DAY
    assert ledger.prune() == ledger.prune().__class__(1, 4)
    assert ledger.numbers("ann", MODEL, "seq") == {5}
    assert ledger.highest("ann", MODEL, "seq") == 5
    clock.now += 2 * DAY
    assert ledger.prune().forgotten == 1
    assert ledger.numbers("ann", MODEL, "seq") == set()
    assert ledger.highest("ann", MODEL, "seq") == 5
