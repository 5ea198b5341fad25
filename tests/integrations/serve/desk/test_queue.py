"""The order in which requests run: by number in a model, in turns between owners and models, and not behind a failure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.integrations.serve.desk.order import Queue
from lossbook.integrations.serve.desk.order.queue import SEQUENCES_PER_TURN
from lossbook.integrations.serve.operations import Operation
from lossbook.integrations.serve.refusals import Failed


def request(
    number: int,
    scope: str = "m",
    kind: str = "forward_backward",
    owner: str = "a",
    counter: str = "seq",
    **payload: Any,
) -> Operation:
    chosen: Any = (kind, counter)
    name = f"{scope}-{counter}-{number}"
    return Operation(owner, chosen[0], scope, number, chosen[1], "", SimpleNamespace(**payload), name)


def run_all(queue: Queue) -> list[int]:
    numbers = []
    while batch := queue.take(0.0):
        numbers += [one.number for one in batch]
        queue.ended(batch, 1.0, 0.0)
    return numbers


@given(st.permutations(range(1, 8)), st.lists(st.booleans(), min_size=7, max_size=7))
def test_requests_of_a_model_run_by_number_in_whatever_order_they_arrive(numbers: list[int], runs: list[bool]) -> None:
    queue, ran = Queue(), list[int]()
    for number, run in zip(numbers, runs, strict=True):
        assert not queue.add(request(number), 0.0)
        if run:
            ran += run_all(queue)
    assert ran + run_all(queue) == sorted(numbers)


@given(st.permutations(range(1, 8)), st.sets(st.integers(1, 7)))
def test_numbers_that_were_refused_are_not_waited_for(numbers: list[int], refused: set[int]) -> None:
    queue = Queue()
    for number in numbers:
        if number in refused:
            queue.used_up("a", "m", number, 0.0)
        else:
            queue.add(request(number), 0.0)
    assert run_all(queue) == [number for number in range(1, 8) if number not in refused]
    assert queue.next_gap() == float("inf")


def test_a_client_that_counts_from_zero_is_understood() -> None:
    queue = Queue()
    queue.add(request(0), 0.0)
    queue.add(request(1), 0.0)
    assert run_all(queue) == [0, 1]


def test_a_missing_request_fails_those_behind_it_after_the_gap_and_names_itself() -> None:
    queue = Queue(gap_seconds=60)
    for number in (1, 3, 4):
        queue.add(request(number), 0.0)
    assert run_all(queue) == [1]
    assert queue.next_gap() == 60.0
    assert not queue.overdue(59.0)
    lost = queue.overdue(60.0)
    assert [one.number for one, _ in lost] == [3, 4]
    assert all(why.category == "server" and "request 2 of model m" in why.message for _, why in lost)
    (late,) = queue.add(request(2), 61.0)
    assert late[1].category == "server"
    assert "came after request 4" in late[1].message
    assert [one.number for one, _ in queue.add(request(5), 61.0)] == [5]
    queue.looked("m-seq-3")
    assert not queue.add(request(6), 62.0)
    assert run_all(queue) == [6]


@pytest.mark.parametrize("kind", ["forward_backward", "optim_step", "load_weights"])
def test_nothing_runs_behind_a_failure_until_its_client_has_looked(kind: str) -> None:
    queue = Queue()
    queue.add(request(1, kind=kind), 0.0)
    queue.add(request(2, kind="optim_step"), 0.0)
    queue.add(request(3, kind="save_weights"), 0.0)
    lost = queue.ended(queue.take(0.0), 1.0, 0.0, Failed("no such loss", "user"))
    assert [(one.number, why.category) for one, why in lost] == [(2, "user"), (3, "user")]
    assert lost[0][1].message == f"not run: {kind} (request 1) before it failed: no such loss"
    (behind,) = queue.add(request(4), 1.0)
    assert behind[1].message == lost[0][1].message
    queue.looked("m-seq-4")  # a failure behind it says the same
    queue.add(request(5), 2.0)
    assert run_all(queue) == [5]


def test_a_step_right_behind_a_failed_backward_never_runs_and_stops_nothing() -> None:
    """Its client may have sent it before it looked: the SDK fetches failures by itself. A step that is sent again runs."""
    queue = Queue()
    queue.add(request(1, kind="forward_backward"), 0.0)
    queue.ended(queue.take(0.0), 1.0, 0.0, Failed("the server stopped", "server"))
    queue.looked("m-seq-1")
    (step,) = queue.add(request(2, kind="optim_step"), 1.0)
    assert (step[1].category, step[1].message) == (
        "server",
        "not run: forward_backward (request 1) before it failed: the server stopped",
    )
    queue.add(request(3, kind="optim_step"), 1.0)
    queue.add(request(4, kind="forward_backward"), 1.0)
    assert run_all(queue) == [3, 4]
    queue.know("o", "n", first=8)
    queue.block("n", [(request(7, scope="n", kind="forward_backward"), Failed("", "server"))])
    queue.looked("n-seq-7")
    assert [one.number for one, _ in queue.add(request(8, scope="n", kind="optim_step"), 1.0)] == [8]


@pytest.mark.parametrize("kind", ["forward", "save_weights", "save_weights_for_sampler", "save_weights_external"])
def test_what_a_failure_leaves_as_it_was_stops_nothing(kind: str) -> None:
    queue = Queue()
    queue.add(request(1, kind=kind), 0.0)
    queue.add(request(2), 0.0)
    assert not queue.ended(queue.take(0.0), 1.0, 0.0, Failed("name is taken", "user"))
    assert run_all(queue) == [2]


def test_a_failure_stops_its_own_model_alone() -> None:
    queue = Queue()
    queue.add(request(1), 0.0)
    queue.add(request(1, scope="n"), 0.0)
    queue.ended(queue.take(0.0), 1.0, 0.0, Failed("", "user"))
    assert run_all(queue) == [1]


@given(st.integers(1, 5), st.integers(1, 40))
def test_one_owner_with_many_requests_delays_another_by_one_of_its_own(others: int, already: int) -> None:
    queue = Queue()
    for owner in range(others):
        for number in range(1, 60):
            queue.add(request(number, scope=f"m{owner}", owner=f"owner{owner}"), 0.0)
    for _ in range(already):
        queue.ended(queue.take(0.0), 1.0, 0.0)
    running = queue.take(0.0)
    queue.add(request(1, scope="mine", owner="me"), 0.0)
    queue.ended(running, 1.0, 0.0)
    turns = 0
    while (batch := queue.take(0.0))[0].owner != "me":
        queue.ended(batch, 1.0, 0.0)
        turns += 1
    assert turns <= others - 1  # what ran, and a turn of each other owner who had used as little


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.1, 1.0, 5.0]), min_size=2, max_size=4), st.booleans())
def test_owners_and_models_have_equal_seconds_but_for_one_call(seconds: list[float], same_owner: bool) -> None:
    queue, used = Queue(), dict.fromkeys(range(len(seconds)), 0.0)
    for i in used:
        for number in range(1, 300):
            queue.add(request(number, scope=str(i), owner="a" if same_owner else str(i)), 0.0)
    for _ in range(60):
        batch = queue.take(0.0)
        used[int(batch[0].scope)] += seconds[int(batch[0].scope)]
        queue.ended(batch, seconds[int(batch[0].scope)], 0.0)
    assert max(used.values()) - min(used.values()) <= max(seconds) + 1e-6


def test_samples_that_wait_are_taken_together_up_to_a_bound() -> None:
    queue = Queue()
    for number in range(10):
        queue.add(request(number, "s", "sample", counter="sample", num_samples=SEQUENCES_PER_TURN // 4), 0.0)
    queue.add(request(99, "s", "sample", counter="sample", num_samples=10 * SEQUENCES_PER_TURN), 0.0)
    batches = []
    while batch := queue.take(0.0):
        batches.append([one.number for one in batch])
        queue.ended(batch, 1.0, 0.0)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [99]]


def test_what_waits_for_a_session_that_ends_fails() -> None:
    queue = Queue()
    for number in (1, 2):
        queue.add(request(number), 0.0)
        queue.add(request(number, scope="n"), 0.0)
    running = queue.take(0.0)
    lost = queue.close([running[0].scope], Failed("ended", "user"))
    assert [one.number for one, _ in lost] == [2]
    assert not queue.ended(running, 1.0, 0.0, Failed("", "user"))
    assert run_all(queue) == [1, 2]
    assert len(queue) == 0


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "take", "fail", "end", "late", "look", "burn"]), st.integers(0, 2), st.integers(1, 6)
    ),
    max_size=60,
)


@given(ACTIONS)
def test_every_request_runs_once_or_is_said_to_be_lost_and_none_out_of_order(
    actions: list[tuple[str, int, int]],
) -> None:
    queue, clock = Queue(gap_seconds=10), 0.0
    added: set[str] = set()
    ran: list[Operation] = []
    lost: list[str] = []
    running: list[Operation] = []
    for action, model, number in actions:
        clock += 1.0
        operation = request(number, scope=f"m{model}", owner=f"o{model % 2}")
        if action == "add" and operation.request_id not in added:
            added.add(operation.request_id)
            lost += [one.request_id for one, _ in queue.add(operation, clock)]
        elif action == "burn" and operation.request_id not in added:
            queue.used_up(operation.owner, operation.scope, number, clock)
            added.add(operation.request_id)  # the ledger never gives this number to a request again
            lost.append(operation.request_id)
        elif action == "take" and not running:
            running = queue.take(clock)
            ran += running
        elif action in ("fail", "end") and running:
            failed = Failed("", "user") if action == "fail" else None
            lost += [one.request_id for one, _ in queue.ended(running, float(number), clock, failed)]
            running = []
        elif action == "late":
            clock += 10.0
            lost += [one.request_id for one, _ in queue.overdue(clock)]
        elif action == "look":
            queue.looked(operation.request_id)
    left = [one.request_id for one, _ in queue.close_all(Failed("", "server"))]
    accounted = sorted([one.request_id for one in ran] + lost + left)
    assert accounted == sorted(added)
    for model in range(3):
        numbers = [one.number for one in ran if one.scope == f"m{model}"]
        assert numbers == sorted(numbers)
