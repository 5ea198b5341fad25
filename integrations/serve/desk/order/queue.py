"""What waits to run, and whose turn it is. No thread and no clock of its own: every method says what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ...operations import Operation
from ...refusals import Failed
from .lane import Lane, Lost, ModelLane, SampleLane
from .turns import Turns

#: Most sequences of one sampler that are sampled in one turn, so that others' turns come.
SEQUENCES_PER_TURN = 256
#: Calls behind whose failure nothing runs: a step must not follow a failed backward.
BINDING = ("forward_backward", "optim_step", "load_weights")
Key = tuple[str, str]  # a scope and a counter


class Queue:
    """Requests in the order in which they are to run.

    * Requests of one model (counter "seq") run by number. What comes before its turn waits `gap_seconds` for those missing.
    * When one of `BINDING` fails, those that wait behind it fail too, and those that come, until its client has looked.
    * Samples of one sampler that wait are taken together. Requests of other counters run as they come.
    * Owners take turns, and so do an owner's models and samplers, weighed by the seconds that their calls take.

    Times are seconds of one clock.
    """

    def __init__(self, gap_seconds: float = 60.0) -> None:
        self.gap_seconds = gap_seconds
        self._lanes: dict[Key, Lane] = {}
        self._owners: Turns[str] = Turns()
        self._turns: dict[str, Turns[Key]] = {}
        self._blocked: dict[str, ModelLane] = {}  # by the ids of failures that a client can look at

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def waiting(self, owner: str) -> int:
        """How many requests of an owner wait."""
        return sum(len(lane) for lane in self._lanes.values() if lane.owner == owner)

    def of(self, scope: str, counter: str = "seq") -> int:
        """How many requests of a model or sampler wait."""
        return len(self._lanes.get((scope, counter), ()))

    def knows(self, scope: str) -> bool:
        """Whether a model's numbers are being counted here."""
        return (scope, "seq") in self._lanes

    def know(self, owner: str, scope: str, first: int = 1) -> None:
        """Begin to count a model's numbers. first: the one that comes next."""
        if not self.knows(scope):
            self._lanes[scope, "seq"] = ModelLane(owner, scope, first)

    def block(self, scope: str, failures: Sequence[Lost]) -> None:
        """Run nothing of a model until its client has looked at one of these failures, which it had before it was opened here."""
        lane = self._lanes[scope, "seq"]
        if isinstance(lane, ModelLane) and failures:
            lane.block(failures)
            self._note((scope, "seq"), lane, [])

    def add(self, operation: Operation, now: float) -> list[Lost]:
        """Take a request. Returns what will not run because of it, with the reason."""
        key = (operation.scope, operation.counter)
        if operation.counter == "seq":
            self.know(operation.owner, operation.scope)
        elif key not in self._lanes:
            self._lanes[key] = (SampleLane if operation.counter == "sample" else Lane)(operation.owner)
        lost = self._lanes[key].add(operation, now)
        self._note(key, self._lanes[key], lost)
        return lost

    def used_up(self, owner: str, scope: str, number: int, now: float) -> None:
        """Note that a request of this number of a model was refused."""
        self.know(owner, scope)
        lane = self._lanes[scope, "seq"]
        if isinstance(lane, ModelLane):
            lane.used_up(number, now)
            self._note((scope, "seq"), lane, [])

    def take(self, now: float) -> list[Operation]:
        """What to run next: one request, or samples that run together; nothing where nothing is ready."""
        owner = self._owners.next()
        if owner is None:
            return []
        key = self._turns[owner].next()
        assert key is not None
        lane = self._lanes[key]
        batch = lane.take(SEQUENCES_PER_TURN, now)
        self._note(key, lane, [])
        return batch

    def ended(self, batch: list[Operation], seconds: float, now: float, failed: Failed | None = None) -> list[Lost]:
        """Note that what was taken has ended. failed: why a single call failed. Returns what will not run because of it."""
        operation = batch[0]
        key = (operation.scope, operation.counter)
        self._owners.charge(operation.owner, seconds)
        self._turns_of(operation.owner).charge(key, seconds)
        if (lane := self._lanes.get(key)) is None:  # its session ended meanwhile
            return []
        binds = failed is not None and operation.kind in BINDING
        lost = lane.ended((operation, failed) if binds and failed is not None else None, now)
        self._note(key, lane, lost)
        return lost

    def overdue(self, now: float) -> list[Lost]:
        """What has waited too long for a request that did not come; it will not run."""
        lost: list[Lost] = []
        for key, lane in list(self._lanes.items()):
            if isinstance(lane, ModelLane) and not lane.running and self._gap_ends(lane) <= now:
                late = lane.overdue()
                self._note(key, lane, late)
                lost += late
        return lost

    def next_gap(self) -> float:
        """When the first wait for a missing request is over; infinity where none is waited for."""
        return min((self._gap_ends(lane) for lane in self._lanes.values() if not lane.running), default=float("inf"))

    def looked(self, request_id: str) -> None:
        """Note that a client has been told of a failure."""
        if (lane := self._blocked.get(request_id)) is not None and lane.failure is not None:
            for known in lane.failure.request_ids:
                self._blocked.pop(known, None)
            lane.looked()

    def close(self, scopes: Iterable[str], why: Failed) -> list[Lost]:
        """Forget models and samplers. Returns what waited for them, which will not run."""
        gone, lost = set(scopes), list[Lost]()
        for key in [key for key in self._lanes if key[0] in gone]:
            lane = self._lanes.pop(key)
            lost += lane.drain(why)
            if isinstance(lane, ModelLane) and lane.failure is not None:
                self.looked(next(iter(lane.failure.request_ids), ""))
            self._leave(key, lane.owner)
        return lost

    def close_all(self, why: Failed) -> list[Lost]:
        """Forget everything."""
        return self.close({scope for scope, _ in self._lanes}, why)

    def is_ready(self) -> bool:
        """Whether something could run now."""
        return len(self._owners) > 0

    def state(self, scope: str) -> Literal["waiting", "running", "idle"]:
        """What a model is doing."""
        lane = self._lanes.get((scope, "seq"))
        return "idle" if lane is None else "running" if lane.running else "waiting" if len(lane) else "idle"

    # --- within -------------------------------------------------------------------------------------------------------

    def _note(self, key: Key, lane: Lane, lost: list[Lost]) -> None:
        """Keep the turns, and the failures that clients can look at, as the lane has them."""
        if isinstance(lane, ModelLane) and lane.failure is not None:
            self._blocked.update(dict.fromkeys(lane.failure.request_ids, lane))
        if lane.ready():
            self._turns_of(lane.owner).enter(key)
            self._owners.enter(lane.owner)
        else:
            self._leave(key, lane.owner)
            if key[1] != "seq" and not lane.running and not len(lane):
                self._lanes.pop(key, None)

    def _leave(self, key: Key, owner: str) -> None:
        turns = self._turns_of(owner)
        turns.leave(key)
        if not len(turns):
            self._owners.leave(owner)

    def _turns_of(self, owner: str) -> Turns[Key]:
        return self._turns.setdefault(owner, Turns())

    def _gap_ends(self, lane: Lane) -> float:
        since = lane.gap_since if isinstance(lane, ModelLane) else None
        return float("inf") if since is None else since + self.gap_seconds
