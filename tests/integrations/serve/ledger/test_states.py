"""Any order of submissions, retries, answers, fetches, crashes and commits that only seem to fail, against a model in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event

from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import PROTOBUF, Answer, Operation
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits

OWNERS, NUMBERS = ("ann", "bob"), (1, 2, 3, 4)
FETCHED, RESULT, REMEMBERED, MOST = 300, 3600, 86_400, 3
CHANGING = ("forward_backward", "optim_step")


@dataclass
class Expected:
    """A request as the model knows it. state: open, done, expired, refused."""

    owner: str
    number: int
    kind: str
    body: str
    request_id: str
    state: str = "open"
    answer: Answer | None = None
    finished: float = 0.0
    fetched: float | None = None
    runs: bool = False


@dataclass
class ExpectedModel:
    executed: int = 0
    durable: int = 0
    checkpoint: str | None = None
    dirty: bool = False
    state: str = "memory"

    @property
    def is_lost(self) -> bool:
        return self.executed > self.durable or self.dirty


def scope(owner: str) -> str:
    return f"{owner}s:train:0"


class Machine(RuleBasedStateMachine):
    """Two owners with a model each, and one server."""

    def __init__(self, new_url: Callable[[], str]) -> None:
        super().__init__()
        self.new_url, self.now = new_url, 1_000_000.0
        self.taken: dict[tuple[str, int], Expected] = {}
        self.forgotten: dict[str, int] = {}
        self.executions: Counter[str] = Counter()
        self.models = {owner: ExpectedModel() for owner in OWNERS}
        self.unwritten: dict[str, float] = {}  # fetched since the last prune
        self.trouble: str | None = None
        self.ledgers: list[Ledger] = []
        event.listen(sa.Engine, "commit", self.on_commit)

    def teardown(self) -> None:
        event.remove(sa.Engine, "commit", self.on_commit)
        for ledger in self.ledgers:
            ledger.close()

    def on_commit(self, connection: sa.Connection) -> None:
        """A commit that is lost, or that arrives while its answer is lost."""
        trouble, self.trouble = self.trouble, None
        if trouble == "kept":
            connection.connection.cursor().execute("COMMIT")
        if trouble is not None:
            raise OSError("the connection broke while it committed")

    def insistently(self, trouble: str | None, call: Callable[[], Any]) -> Any:
        """What a client or the desk does: the call again, when it was refused for now."""
        self.trouble = trouble
        try:
            return call()
        except Refused as refused:
            if refused.status != 503:
                raise
            assert trouble is not None
            return call()
        finally:
            self.trouble = None

    def open(self) -> Ledger:
        """A server that starts; what there was of another one is left as it is."""
        ledger = Ledger(
            self.url,
            clock=lambda: self.now,
            limits=Limits(requests_per_key=MOST),
            fetched_seconds=FETCHED,
            result_seconds=RESULT,
            alone=False,
        )
        self.ledgers.append(ledger)
        return ledger

    @initialize()
    def start(self) -> None:
        self.url = self.new_url()
        self.ledger = self.open()
        self.ledger.recover()
        for owner in OWNERS:
            self.ledger.add_session(owner, f"{owner}s")
            self.ledger.add_model(owner, scope(owner), f"{owner}s", {"of": owner})

    def open_of(self, owner: str) -> int:
        return sum(one.owner == owner and one.state == "open" for one in self.taken.values())

    @rule(
        owner=st.sampled_from(OWNERS),
        number=st.sampled_from(NUMBERS),
        kind=st.sampled_from([*CHANGING, "sample"]),
        body=st.sampled_from(["a", "a", "b"]),
        trouble=st.sampled_from([None, None, "lost", "kept"]),
    )
    def submit(self, owner: str, number: int, kind: Any, body: str, trouble: str | None) -> None:
        operation = Operation(owner, kind, scope(owner), number, "seq", body, None)
        expected = self.taken.get((owner, number))
        if expected is None:
            status = None
            if self.open_of(owner) >= MOST:
                status = 429
            elif number <= self.forgotten.get(owner, 0):
                status = 400
        elif expected.state == "refused" or (expected.kind, expected.body) != (kind, body):
            status = 400
        else:
            status = None
        if status is not None:
            with pytest.raises(Refused) as refused:
                self.insistently(trouble, lambda: self.ledger.submit(operation))
            assert refused.value.status == status
            return
        submission = self.insistently(trouble, lambda: self.ledger.submit(operation))
        assert submission.is_new == (expected is None), "it is queued once"
        if expected is None:
            self.taken[owner, number] = Expected(owner, number, kind, body, submission.request_id)
        else:
            assert submission.request_id == expected.request_id
            assert submission.answer == expected.answer

    @rule(owner=st.sampled_from(OWNERS), kind=st.sampled_from([*CHANGING, "sample"]), data=st.data())
    def whole(self, owner: str, kind: Any, data: st.DataObject) -> None:
        """A request that is taken and run, and perhaps answered: most are."""
        number = next((one for one in NUMBERS if (owner, one) not in self.taken), NUMBERS[0])
        self.submit(owner, number, kind, "a", None)
        self.begin(set())
        if any(one.runs for one in self.taken.values()):
            self.finish(data, False, None)

    @rule(
        owner=st.sampled_from(OWNERS), number=st.sampled_from(NUMBERS), trouble=st.sampled_from([None, "lost", "kept"])
    )
    def refuse(self, owner: str, number: int, trouble: str | None) -> None:
        self.insistently(trouble, lambda: self.ledger.used_up(owner, scope(owner), "seq", number))
        if (owner, number) not in self.taken:
            self.taken[owner, number] = Expected(owner, number, "", "", "", "refused", finished=self.now)

    @precondition(lambda self: bool(self.taken))
    @rule(skips=st.sets(st.integers(0, 7), max_size=2))
    def begin(self, skips: set[int]) -> None:
        by_id = {one.request_id: one for one in self.taken.values() if one.request_id}
        some = [one for place, one in enumerate(sorted(by_id)) if place not in skips]
        begun = self.ledger.begin(some * 2)
        assert set(begun) == {one for one in some if by_id[one].state == "open" and not by_id[one].runs}
        for one in begun:
            by_id[one].runs = True
        self.executions.update(begun)

    @precondition(lambda self: any(one.runs for one in self.taken.values()))
    @rule(data=st.data(), fails=st.booleans(), trouble=st.sampled_from([None, None, "lost", "kept"]))
    def finish(self, data: st.DataObject, fails: bool, trouble: str | None) -> None:
        running = [one for one in self.taken.values() if one.runs]
        one = data.draw(st.sampled_from(sorted(running, key=lambda one: (one.owner, one.number))))
        changes: dict[str, Any] = {}
        if fails:
            answer = Answer(error=f"{one.kind} failed", category="user")
        else:
            answer = Answer(f"{one.owner} {one.number}".encode(), PROTOBUF)
            if one.kind in CHANGING:
                model = self.models[one.owner]
                model.executed, model.dirty = one.number, one.kind == "forward_backward"
                model.state = "memory"
                changes = {"executed_seq": one.number, "dirty": model.dirty, "state": "memory"}
        is_first = self.insistently(
            trouble, lambda: self.ledger.finish(one.request_id, answer, model_id=scope(one.owner), **changes)
        )
        assert is_first or trouble == "kept"
        assert not self.ledger.finish(one.request_id, Answer(b"another"), model_id=scope(one.owner), executed_seq=99)
        one.state, one.answer, one.finished, one.runs = "done", answer, self.now, False

    @rule(owner=st.sampled_from(OWNERS), trouble=st.sampled_from([None, "lost", "kept"]))
    def save(self, owner: str, trouble: str | None) -> None:
        model = self.models[owner]
        path = f"tinker://{owner}/weights/{model.executed}"
        self.insistently(
            trouble,
            lambda: self.ledger.set_model(
                scope(owner),
                durable_seq=model.executed,
                durable_path=path,
                checkpoint=path,
                checkpoint_seq=model.executed,
            ),
        )
        model.durable, model.checkpoint = model.executed, path

    @precondition(lambda self: any(one.request_id for one in self.taken.values()))
    @rule(data=st.data(), asks=st.sampled_from(OWNERS), is_fetched=st.booleans())
    def fetch(self, data: st.DataObject, asks: str, is_fetched: bool) -> None:
        taken = sorted((one for one in self.taken.values() if one.request_id), key=lambda one: (one.owner, one.number))
        one = data.draw(st.sampled_from(taken))
        if asks != one.owner or one.state == "expired":
            with pytest.raises(Refused) as refused:
                self.ledger.answer(asks, one.request_id)
            assert refused.value.status == (410 if asks == one.owner and one.kind == "sample" else 404)
            return
        answer = self.ledger.answer(asks, one.request_id)
        assert answer == one.answer, "the first answer, for ever; and none before"
        if answer is not None and is_fetched:
            self.ledger.fetched(one.request_id)
            self.unwritten[one.request_id] = self.now

    @rule(seconds=st.sampled_from([1, 301, 3601, 90_001]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(trouble=st.sampled_from([None, "lost", "kept"]))
    def prune(self, trouble: str | None) -> None:
        self.insistently(trouble, self.ledger.prune)
        for key, one in list(self.taken.items()):
            one.fetched = self.unwritten.pop(one.request_id, one.fetched)
            until = one.finished + RESULT if one.fetched is None else one.fetched + FETCHED
            if one.state == "done" and until <= self.now:
                one.state, one.answer = "expired", None
            if one.state in ("expired", "refused") and one.finished <= self.now - RESULT - REMEMBERED:
                self.forgotten[one.owner] = max(one.number, self.forgotten.get(one.owner, 0))
                del self.taken[key]

    @rule()
    def crash(self) -> None:
        """The process dies: nothing is closed, and another one opens what is on the disk."""
        self.unwritten.clear()
        self.ledger = self.open()
        recovered = self.ledger.recover()
        left = [one for one in self.taken.values() if one.state == "open"]
        assert set(recovered.failed) == {one.request_id for one in left}
        for owner, model in self.models.items():
            if model.state != "lost":
                model.state = "lost" if model.is_lost else "parked"
                names = [record.model_id for record in (recovered.lost if model.is_lost else recovered.parked)]
                assert scope(owner) in names
        for one in left:
            one.state, one.finished, one.runs = "done", self.now, False
            one.answer = self.ledger.answer(one.owner, one.request_id)
            assert one.answer is not None
            assert one.answer.category == "server"
            assert f"{one.kind} (request {one.number})" in str(one.answer.error)
            self.names_what_is_left(one.owner, str(one.answer.error))
        assert self.ledger.recover().failed == ()

    def names_what_is_left(self, owner: str, error: str) -> None:
        model = self.models[owner]
        assert (f"lost after request {model.executed}" in error) == (model.state == "lost")
        if model.state == "lost" and model.checkpoint is not None:
            assert f"{model.checkpoint} (request {model.durable})" in error

    @invariant()
    def nothing_runs_twice_and_models_are_known(self) -> None:
        assert max(self.executions.values(), default=0) <= 1
        for owner, expected in self.models.items() if hasattr(self, "ledger") else ():
            model = self.ledger.model(owner, scope(owner))
            if expected.state == "memory":
                assert model.state == "memory"
            assert model.state == expected.state
            assert (model.executed_seq, model.durable_seq, model.dirty) == (
                expected.executed,
                expected.durable,
                expected.dirty,
            )
            assert (model.problem is not None) == (expected.state == "lost")
            if model.problem is not None:
                self.names_what_is_left(owner, model.problem)
            assert self.ledger.open_requests(owner) == self.open_of(owner)


@pytest.mark.parametrize(
    ("examples", "steps"), [(3, 25), pytest.param(25, 50, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_each_request_runs_once_and_has_one_answer_whatever_happens(
    new_url: Callable[[], str], examples: int, steps: int
) -> None:
    run_state_machine_as_test(
        lambda: Machine(new_url),
        settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=False),
    )
