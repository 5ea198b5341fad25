"""The server under test, as checks see it: clients that start alike, steps that can be compared, and answers in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .connections import Connection
from .material import Example, Material, as_datum
from .promises import Broken
from .settings import ConformSettings
from .wire import Wire

#: So large that AdamW's first step is the gradient times learning_rate / EPS: a step whose size shows the gradient's.
EPS = 1e6
#: The largest change of a logprob that a step is made to have, in nats.
_CHANGE = 0.4
#: Two steps are the same where the logprobs after them differ by less than this part of what the step changed.
_OF_THE_CHANGE = 0.02

#: What is done with a fresh client.
Calls = Callable[[Any], None]


class Server:
    """A connection, its service client, and a fixed start from which every arm of a comparison begins.

    Weights cannot be read through the protocol. So gradients are compared by the logprobs of fixed `probe` examples after a
    step that is proportional to the gradient.
    """

    def __init__(self, connection: Connection, settings: ConformSettings) -> None:
        self.connection, self.settings = connection, settings
        self.api = connection.api
        self.service = connection.service()
        self.probe = self.material("probe").examples()
        self.data = self.material("data").examples()
        self.repeats_seed = True
        self._start: str | None = None
        self._rate = 0.0
        self._arms: dict[str, np.ndarray] = {}

    def material(self, name: str) -> Material:
        """Draws for a check, equal in every run of one seed."""
        return Material(self.settings, name)

    # --- calls --------------------------------------------------------------------------------------------------------

    def answer(self, future: Any) -> Any:
        """What a call gives. Raises TimeoutError after the settings' timeout."""
        return future.result(self.settings.timeout) if hasattr(future, "result") else future

    def client(self) -> Any:
        """A training client at the start."""
        if self._start is not None:
            return self.answer(self.service.create_training_client_from_state(self._start))
        settings = self.settings
        made = self.service.create_lora_training_client(settings.model, rank=settings.rank, seed=settings.seed + 1)
        return self.answer(made)

    def datums(self, examples: Sequence[Example]) -> list[Any]:
        """The API's datums."""
        return [as_datum(self.api, example) for example in examples]

    def forward(self, client: Any, examples: Sequence[Example], loss: str = "cross_entropy", **config: float) -> Any:
        """The answer of a forward."""
        return self.answer(client.forward(self.datums(examples), loss, config or None))

    def backward(self, client: Any, examples: Sequence[Example], loss: str = "cross_entropy", **config: float) -> Any:
        """The answer of a forward and backward."""
        return self.answer(client.forward_backward(self.datums(examples), loss, config or None))

    def adam(self, scale: float = 1.0, *, beta1: float = 0.9, beta2: float = 0.95) -> dict[str, float]:
        """Settings of a step of `scale` times the calibrated size, proportional to the gradient."""
        rate = scale * self._rate * EPS
        return {"learning_rate": rate, "beta1": beta1, "beta2": beta2, "eps": EPS}

    def step(self, client: Any, scale: float = 1.0, *, beta1: float = 0.9, beta2: float = 0.95) -> Any:
        """The answer of that step."""
        return self.answer(client.optim_step(self.api.AdamParams(**self.adam(scale, beta1=beta1, beta2=beta2))))

    def sampler(self, client: Any) -> Any:
        """A sampling client of the client's weights now."""
        return self.answer(client.save_weights_and_get_sampling_client())

    def seen(self, client: Any) -> np.ndarray:
        """Logprobs of the probe examples, all positions one after the other."""
        return np.concatenate([one.reshape(-1) for one in logprobs_of(self.forward(client, self.probe))])

    # --- comparisons --------------------------------------------------------------------------------------------------

    def after(self, calls: Calls, key: str | None = None) -> np.ndarray:
        """What is seen of a fresh client after some calls; one key is run once."""
        if key is not None and key in self._arms:
            return self._arms[key]
        client = self.client()
        calls(client)
        seen = self.seen(client)
        if key is not None:
            self._arms[key] = seen
        return seen

    @property
    def start(self) -> np.ndarray:
        """What is seen at the start."""
        return self.after(lambda client: None, "start")

    def baseline(self) -> np.ndarray:
        """What is seen after one step on the data, in one call."""
        return self.after(lambda client: (self.backward(client, self.data), self.step(client), None)[-1], "baseline")

    def same_step(self, one: np.ndarray, other: np.ndarray, what: str) -> str:
        """The figure of two equal steps. Raises Broken where they differ, or where neither moved anything."""
        change = float(np.abs(other - self.start).max())
        apart = float(np.abs(one - other).max())
        figure = f"{what}: logprobs after the step differ by {apart:.2g} nats; the step moves them by {change:.2g}"
        if not np.isfinite(apart) or apart > self.settings.tolerance * 0.2 + _OF_THE_CHANGE * change:
            raise Broken(figure)
        if change < 5 * self.settings.tolerance:
            raise Broken(f"{what}: the step moves logprobs by no more than {change:.2g} nats, so nothing was compared")
        return figure

    def equal(self, one: Any, other: Any, what: str, scale: float | None = None) -> str:
        """The figure of two equal numbers or arrays; scale: the size of what was added up. Raises Broken."""
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if one.shape != other.shape:
            raise Broken(f"{what}: shape {list(one.shape)} and {list(other.shape)}")
        apart = np.abs(one - other)
        bound = self.settings.tolerance * np.maximum(1.0, np.abs(other) if scale is None else scale)
        at = int(np.argmax(apart / bound)) if apart.size else 0
        pair = f"{one.reshape(-1)[at]:.6g} and {other.reshape(-1)[at]:.6g}" if apart.size else "nothing"
        if not (apart <= bound).all():
            raise Broken(f"{what}: {pair}")
        return f"{what}: {pair}" if apart.size == 1 else f"{what}: differ by at most {apart.max(initial=0):.2g}"

    def refused(self, call: Callable[[], Any], what: str) -> str:
        """The figure of a call that must fail soon. Raises Broken where it does not."""
        begun = time.monotonic()
        try:
            future = call()
            future.result(self.settings.error_seconds)
        except TimeoutError as error:
            if time.monotonic() - begun >= 0.9 * self.settings.error_seconds:
                raise Broken(f"{what}: no answer within {self.settings.error_seconds:g} s") from error
        except Exception:
            pass  # whatever it says, it is an error
        else:
            raise Broken(f"{what}: no error")
        return f"{what}: refused after {time.monotonic() - begun:.1f} s"

    def wire(self) -> Wire | None:
        """For raw requests; None where there is no HTTP."""
        return None if self.connection.wire is None else self.connection.wire(self.settings.timeout)

    # --- the start ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Find a size of step that shows, and a start that repeats. Whatever this raises means that nothing can be asked."""
        self._rate = 1e-3
        for _ in range(4):
            self._arms.clear()
            change = float(np.abs(self.baseline() - self.start).max())
            if not np.isfinite(change):
                self._rate /= 100
            elif 0.5 * _CHANGE < change < 2 * _CHANGE:
                break
            else:
                self._rate *= float(np.clip(_CHANGE / max(change, 1e-9), 1e-2, 1e2))
        first = self._arms.pop("baseline")
        if np.abs(self.baseline() - first).max() > self.settings.tolerance * 0.2 + _OF_THE_CHANGE * _CHANGE:
            self.repeats_seed = False
            self._start = self.answer(self.client().save_state("conform-start")).path
            self._arms.clear()


def logprobs_of(output: Any) -> list[np.ndarray]:
    """The logprobs of each datum, float64."""
    return [np.asarray(one["logprobs"].to_numpy(), np.float64) for one in output.loss_fn_outputs]


def loss_of(output: Any) -> float:
    """The loss of a call. Raises Broken without one."""
    if "loss:sum" not in output.metrics:
        raise Broken(f"the answer has no metric loss:sum; it has {', '.join(sorted(output.metrics)) or 'none'}")
    return float(output.metrics["loss:sum"])
