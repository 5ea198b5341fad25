"""The requests of one model, sampler or session that have arrived and not begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...operations import Operation
from ...refusals import Failed

#: A request that will not run, and why.
Lost = tuple[Operation, Failed]


@dataclass
class Failure:
    """Why nothing of a model runs until its client has looked. request_ids: of the failures that it can look at."""

    message: str
    category: str
    request_ids: set[str] = field(default_factory=set)


class Lane:
    """Requests in the order in which they arrived."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.running = 0
        self._waiting: deque[Operation] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, operation: Operation, now: float) -> list[Lost]:
        """Take a request. Returns what will not run because of it, such as itself."""
        self._waiting.append(operation)
        return []

    def ready(self) -> bool:
        """Whether there is something to run now."""
        return bool(self._waiting) and not self.running

    def take(self, most: int, now: float) -> list[Operation]:
        """The requests to run now, one or more that can run together."""
        self.running = 1
        return [self._waiting.popleft()]

    def ended(self, failed: Lost | None, now: float) -> list[Lost]:
        """Note the end of what ran. Returns what will not run because it failed."""
        self.running = 0
        return []

    def drain(self, failed: Failed) -> list[Lost]:
        """Everything that waits, which will not run."""
        lost, self._waiting = [(one, failed) for one in self._waiting], deque()
        return lost


class SampleLane(Lane):
    """Samples from one sampler: those that wait are handed over together."""

    def take(self, most: int, now: float) -> list[Operation]:
        """As many as come to `most` sequences, and one at least."""
        self.running = 1
        batch, sequences = [self._waiting.popleft()], 0
        sequences += _sequences(batch[0])
        while self._waiting and sequences + _sequences(self._waiting[0]) <= most:
            batch.append(self._waiting.popleft())
            sequences += _sequences(batch[-1])
        return batch


class ModelLane(Lane):
    """Requests of one model in training, which run in the order of their numbers.

    scope    the model's id
    next     the number that runs next

    A step right behind a failed backward never runs. Its client may have sent it before it knew, whatever else it has fetched by
    then: the SDK fetches a failure by itself, before the step that was meant for that gradient has arrived.
    """

    def __init__(self, owner: str, scope: str, first: int) -> None:
        super().__init__(owner)
        self.scope, self.next, self._first = scope, first, first
        self.failure: Failure | None = None
        self.gap_since: float | None = None  # since when others wait for a number that has not come
        self._numbered: dict[int, Operation] = {}
        self._used_up: set[int] = set()
        self._no_gradient: tuple[int, Failure] | None = None  # of the last backward that did not run well

    def __len__(self) -> int:
        return len(self._numbered)

    def add(self, operation: Operation, now: float) -> list[Lost]:
        """Take a request. It will not run where it is late, or where the client has yet to look at a failure."""
        number = operation.number
        if number == 0 and self.next == self._first == 1 and not self._numbered:
            self.next = 0  # a client that counts from 0
        if number < self.next:
            return [(operation, self._late(number))]
        if self.failure is not None:
            self._burn(number)
            self.failure.request_ids.add(operation.request_id)
            self._note_backward(operation, self.failure)
            return [(operation, _behind(self.failure))]
        last = self._no_gradient
        if last is not None and operation.kind == "optim_step" and number == last[0] + 1:
            self._burn(number)
            self._look_for_gap(now)
            return [(operation, _behind(last[1]))]
        self._numbered[number] = operation
        self._look_for_gap(now)
        return []

    def used_up(self, number: int, now: float) -> None:
        """Note that a number was refused, so that nothing waits for it."""
        if number >= self.next and number not in self._numbered:
            self._burn(number)
            self._look_for_gap(now)

    def ready(self) -> bool:
        return not self.running and self.next in self._numbered

    def take(self, most: int, now: float) -> list[Operation]:
        self.running = 1
        operation = self._numbered.pop(self.next)
        self._burn(self.next)
        self._look_for_gap(now)
        return [operation]

    def ended(self, failed: Lost | None, now: float) -> list[Lost]:
        """Note the end of what ran. After a failure nothing runs until its client has looked at it, or at one behind it."""
        self.running = 0
        if failed is None:
            return []
        failure = _failure([failed])
        self._note_backward(failed[0], failure)
        return self._fail(failure)

    def block(self, failures: Sequence[Lost]) -> None:
        """Run nothing until the client has looked at one of these."""
        self.failure = _failure(failures)
        for operation, _ in failures:
            self._note_backward(operation, self.failure)

    def overdue(self) -> list[Lost]:
        """What waits for a number that did not come in time; it will not run."""
        last, missing = max(self._numbered), self.next
        message = (
            f"request {missing} of model {self.scope} never arrived, and the requests after it run after it. Send them again, "
            "or go on from a checkpoint"
        )
        lost = self._fail(Failure(message, "server"))
        self.next = max(self.next, last + 1)
        return lost

    def looked(self) -> None:
        """Note that the client knows of the failure: what it sends from now on runs."""
        self.failure = None

    def drain(self, failed: Failed) -> list[Lost]:
        lost = [(self._numbered[number], failed) for number in sorted(self._numbered)]
        for number in sorted(self._numbered):
            self._burn(number)
        self._numbered, self.gap_since = {}, None
        return lost

    def _fail(self, failure: Failure) -> list[Lost]:
        lost = self.drain(_behind(failure))
        for operation, _ in lost:
            failure.request_ids.add(operation.request_id)
            self._note_backward(operation, failure)
        self.failure = failure
        return lost

    def _note_backward(self, operation: Operation, failure: Failure) -> None:
        if operation.kind == "forward_backward" and (self._no_gradient or (-1,))[0] < operation.number:
            self._no_gradient = (operation.number, failure)

    def _late(self, number: int) -> Failed:
        return Failed(
            f"request {number} of model {self.scope} came after request {self.next - 1}, before which it should have run: "
            "it was given up. Go on from a checkpoint, or send it under the next number",
            "server",
        )

    def _burn(self, number: int) -> None:
        self._used_up.add(number)
        while self.next in self._used_up:
            self._used_up.remove(self.next)
            self.next += 1

    def _look_for_gap(self, now: float) -> None:
        waits = bool(self._numbered) and self.next not in self._numbered
        self.gap_since = None if not waits else now if self.gap_since is None else self.gap_since


def _failure(failures: Sequence[Lost]) -> Failure:
    operation, why = failures[0]
    what = f"{operation.kind} (request {operation.number}) before it failed: {why.message}"
    return Failure(f"not run: {what}", why.category, {one.request_id for one, _ in failures})


def _behind(failure: Failure) -> Failed:
    return Failed(failure.message, "user" if failure.category == "user" else "server")


def _sequences(operation: Operation) -> int:
    return int(getattr(operation.payload, "num_samples", 1) or 1)
