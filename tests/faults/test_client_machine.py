"""A training client among good and failing calls is, bit for bit, a client that got the good calls only.

Two clients of one service take turns; their twins live in a service of their own and never see a call that fails. After every
call weights, gradients, moments, counts and the random state are compared byte by byte, and so is what calls return.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import lossbook as lb
from lossbook.datums import disk
from lossbook.datums.errors import LossbookError
from lossbook.trainer.clients.training import TrainingClient

from ..trainer.conftest import random_datums, whole_state

LOSSES = ("cross_entropy", "ppo", "importance_sampling", "cispo", "gspo", "poly1", "focal")
WHO = st.integers(0, 1)
SEEDS = st.integers(0, 5)


class OfTheLossError(Exception):
    """What a user's loss raises."""


def squares(data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    return torch.stack([(one**2).sum() for one in logprobs]).sum(), {"longest": float(max(map(len, logprobs)))}


def of_weights(data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    weights = [one.loss_fn_inputs["weights"].to_torch() for one in data]
    return -torch.stack([(w * one).sum() for w, one in zip(weights, logprobs, strict=True)]).sum(), {}


def raises(data: Any, logprobs: list[torch.Tensor]) -> Any:
    _ = torch.stack([one.sum() for one in logprobs]).sum()
    torch.rand(3)  # random numbers that are drawn are given back
    raise OfTheLossError


def is_nan(data: Any, logprobs: list[torch.Tensor]) -> Any:
    return torch.stack([one.sum() for one in logprobs]).sum() * float("nan"), {}


def has_no_gradient(data: Any, logprobs: list[torch.Tensor]) -> Any:
    return torch.stack([one.detach().sum() for one in logprobs]).sum(), {}


def has_an_infinite_gradient(data: Any, logprobs: list[torch.Tensor]) -> Any:
    return torch.stack([(one - one.detach()).abs().sqrt().sum() for one in logprobs]).sum(), {}


def is_no_scalar(data: Any, logprobs: list[torch.Tensor]) -> Any:
    return torch.cat(logprobs), {}


def writes_into_its_input(data: Any, logprobs: list[torch.Tensor]) -> Any:
    with torch.no_grad():
        logprobs[0].mul_(2.0)
    return torch.stack([one.sum() for one in logprobs]).sum(), {}


def turns_torchs_modes_around(data: Any, logprobs: list[torch.Tensor]) -> Any:
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    raise OfTheLossError


def without(data: list[lb.Datum], key: str) -> list[lb.Datum]:
    return [lb.Datum(one.model_input, {k: v for k, v in one.loss_fn_inputs.items() if k != key}) for one in data]


def shortened(data: list[lb.Datum], key: str) -> list[lb.Datum]:
    return [lb.Datum(one.model_input, {**one.loss_fn_inputs, key: [1.0]}) for one in data]


#: Calls that must fail: by name, a function of a client, datums and the folder of the client's checkpoints.
FAILING: dict[str, Callable[[TrainingClient, list[lb.Datum], Path], Any]] = {
    **{
        f"a loss that {loss.__name__.replace('_', ' ')}": lambda c, d, _, loss=loss: c.forward_backward_custom(d, loss)
        for loss in (
            raises,
            is_nan,
            has_no_gradient,
            has_an_infinite_gradient,
            is_no_scalar,
            writes_into_its_input,
            turns_torchs_modes_around,
        )
    },
    "an unknown loss": lambda c, d, _: c.forward_backward(d, "cross_entropi"),
    "an unknown setting": lambda c, d, _: c.forward_backward(d, "ppo", {"clip": 1.0}),
    "a setting out of its range": lambda c, d, _: c.forward_backward(d, "ppo", {"clip_high": 0.2}),
    "a missing input": lambda c, d, _: c.forward_backward(without(d, "advantages"), "ppo"),
    "an input of another length": lambda c, d, _: c.forward_backward(shortened(d, "weights"), "cross_entropy"),
    "a forward without targets": lambda c, d, _: c.forward(without(d, "target_tokens"), "cross_entropy"),
    "no datum at all": lambda c, d, _: c.forward_backward([], "cross_entropy"),
    "what is no datum": lambda c, d, _: c.forward_backward([7], "cross_entropy"),
    "a token beyond the vocabulary": lambda c, d, _: c.forward(
        [lb.Datum(lb.ModelInput.from_ints([10**6]), {})], "poly1"
    ),
    "a learning rate that is NaN": lambda c, d, _: c.optim_step(lb.AdamParams(learning_rate=float("nan"))),
    "a decay of moments of one": lambda c, d, _: c.optim_step(lb.AdamParams(beta2=1.0)),
    "a normalization that there is not": lambda c, d, _: c.optim_step(
        lb.AdamParams(),
        grad_accumulation_normalization="tokens",  # type: ignore[arg-type]
    ),
    "a checkpoint that is not there": lambda c, d, folder: c.load_state(str(folder / "nothing")),
    "a damaged checkpoint": lambda c, d, folder: c.load_state(str(folder / "damaged")),
    "a checkpoint of another model": lambda c, d, folder: c.load_state(str(folder / "another")),
    "weights alone, with the optimizer": lambda c, d, folder: c.load_state(str(folder / "sampler_weights" / "weights")),
    "a name that leaves the folder": lambda c, d, _: c.save_state("../state"),
    "a name that is taken": lambda c, d, _: c.save_state("initial-0"),
}


#: What those calls raise; RuntimeError is torch's own, where a loss writes into a view.
FAILURES = (LossbookError, OfTheLossError, RuntimeError)


class World:
    """A service with two clients, its own random state, and checkpoints with which every example begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        service = lb.ServiceClient(device="cpu", checkpoint_dir=folder, dropout=True)
        make = service.create_lora_training_client
        self.clients = [make("tiny", rank=4, seed=seed, lora_dropout=0.25) for seed in (0, 1)]
        for number, client in enumerate(self.clients):
            client.save_state(f"initial-{number}").result()
        self.clients[0].save_weights_for_sampler("weights").result()
        make("tiny", rank=2, seed=0).save_state("another").result()
        damaged = Path(self.clients[0].save_state("damaged").result().path) / "weights.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        self.random = torch.get_rng_state()

    def begin(self) -> None:
        """Both clients as they were made."""
        for number, client in enumerate(self.clients):
            client.load_state(str(self.folder / f"initial-{number}")).result()
        torch.manual_seed(0)
        self.random = torch.get_rng_state()

    @contextlib.contextmanager
    def active(self) -> Iterator[list[TrainingClient]]:
        """Within the block, the global random state is this world's."""
        torch.set_rng_state(self.random)
        try:
            yield self.clients
        finally:
            self.random = torch.get_rng_state()

    def state(self) -> list[dict[str, Any]]:
        with self.active() as clients:
            return [whole_state(client) for client in clients]


def told(output: Any) -> Any:
    """What a call returned, as values that compare bit for bit."""
    if hasattr(output, "loss_fn_outputs"):
        rows = [{name: value.to_numpy().tobytes() for name, value in row.items()} for row in output.loss_fn_outputs]
        return rows, repr(sorted(output.metrics.items()))
    if hasattr(output, "sequences"):
        return [(list(one.tokens), list(one.logprobs or ())) for one in output.sequences]
    return repr(getattr(output, "metrics", None))


class Clients(RuleBasedStateMachine):
    """The rules; `worlds` holds the clients under test and their twins."""

    worlds: ClassVar[list[World]]
    counts: ClassVar[Counter[str]] = Counter()

    @initialize()
    def begin(self) -> None:
        for world in self.worlds:
            world.begin()
        self.saved: set[tuple[int, int]] = set()

    def both(self, what: str, call: Callable[[list[TrainingClient], Path], Any]) -> None:
        """Make a call in both worlds; it returns the same."""
        self.counts[what] += 1
        results = []
        for world in self.worlds:
            with world.active() as clients:
                results.append(told(call(clients, world.folder)))
        assert results[0] == results[1]

    @invariant()
    def nothing_differs(self) -> None:
        ours, twins = (world.state() for world in self.worlds)
        for number, (own, twin) in enumerate(zip(ours, twins, strict=True)):
            assert own == twin, f"client {number}: {[key for key in own if own[key] != twin[key]]}"

    @rule(who=WHO, seed=SEEDS, loss=st.sampled_from(LOSSES), mean=st.booleans())
    def forward_backward(self, who: int, seed: int, loss: str, mean: bool) -> None:
        config = {"reduction": "mean" if loss == "gspo" else "token-mean"} if mean else {}
        data = random_datums(3, seed)
        self.both("forward_backward", lambda c, _: c[who].forward_backward(data, loss, config).result())

    @rule(who=WHO, seed=SEEDS, loss=st.sampled_from((squares, of_weights)))
    def custom(self, who: int, seed: int, loss: Any) -> None:
        data = random_datums(3, seed)
        self.both("forward_backward_custom", lambda c, _: c[who].forward_backward_custom(data, loss).result())

    @rule(who=WHO, seed=SEEDS)
    def forward(self, who: int, seed: int) -> None:
        self.both("forward", lambda c, _: c[who].forward(random_datums(3, seed), "cross_entropy").result())

    @precondition(lambda self: any(w.clients[0].local.accumulated.calls for w in self.worlds))
    @rule(rate=st.sampled_from((0.0, 1e-3, 0.1)), clip=st.sampled_from((0.0, 1.0)), decay=st.sampled_from((0.0, 0.1)))
    def step_of_the_first(self, rate: float, clip: float, decay: float) -> None:
        params = lb.AdamParams(learning_rate=rate, grad_clip_norm=clip, weight_decay=decay)
        self.both("optim_step", lambda c, _: c[0].optim_step(params).result())

    @precondition(lambda self: any(w.clients[1].local.accumulated.calls for w in self.worlds))
    @rule(norm=st.sampled_from(("none", "num_sequences")))
    def step_of_the_second(self, norm: Any) -> None:
        if norm != "none" and self.worlds[0].clients[1].local.accumulated.means:
            norm = "none"
        params = lb.AdamParams(learning_rate=1e-2)
        self.both("optim_step", lambda c, _: c[1].optim_step(params, grad_accumulation_normalization=norm).result())

    @rule(who=WHO)
    def discard(self, who: int) -> None:
        self.both("discard_gradients", lambda c, _: c[who].discard_gradients().result())

    @rule(who=WHO, slot=st.integers(0, 2))
    def save(self, who: int, slot: int) -> None:
        self.both("save_state", lambda c, _: c[who].save_state(f"at-{who}-{slot}", overwrite=True).result())
        self.saved.add((who, slot))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), optimizer=st.booleans())
    def load(self, data: Any, optimizer: bool) -> None:
        who, slot = data.draw(st.sampled_from(sorted(self.saved)))
        name = f"at-{who}-{slot}"
        self.both("load_state", lambda c, at: c[who].load_state(str(at / name), optimizer=optimizer).result())

    @rule(who=WHO, seed=SEEDS, temperature=st.sampled_from((0.0, 1.0)))
    def sample(self, who: int, seed: int, temperature: float) -> None:
        params = lb.SamplingParams(max_tokens=3, temperature=temperature, seed=seed)

        def call(clients: list[TrainingClient], _: Path) -> Any:
            sampler = clients[who].save_weights_and_get_sampling_client()
            return sampler.sample(lb.ModelInput.from_ints([1, 2, 3]), 2, params).result()

        self.both("sample", call)

    @rule(who=WHO, seed=SEEDS)
    def reference(self, who: int, seed: int) -> None:
        data = random_datums(2, seed)
        self.both("reference", lambda c, _: c[who].create_reference_client().forward(data, "cross_entropy").result())

    @rule(who=WHO, seed=SEEDS, name=st.sampled_from(sorted(FAILING)))
    def fails(self, who: int, seed: int, name: str) -> None:
        self.counts["failing"] += 1
        world = self.worlds[0]
        with world.active() as clients, pytest.raises(FAILURES):
            FAILING[name](clients[who], random_datums(3, seed), world.folder).result()

    @precondition(lambda self: self.saved)
    @rule(who=WHO, number=st.integers(1, 16), action=st.sampled_from(("enospc", "eio")))
    def save_on_a_failing_disk(self, who: int, number: int, action: str) -> None:
        self.counts["failing"] += 1
        world = self.worlds[0]
        with pytest.MonkeyPatch.context() as patch, world.active() as clients:
            disk.hits.clear()
            patch.setenv(disk.FAILPOINT, f"{action}@{number}")
            with contextlib.suppress(LossbookError):  # the last operations may fail without harm
                clients[who].save_state(f"failed-{os.urandom(8).hex()}").result()

    @rule(who=WHO, seed=SEEDS, name=st.sampled_from([name for name in sorted(FAILING) if name.startswith("a loss")]))
    def fails_and_nobody_looks(self, who: int, seed: int, name: str) -> None:
        self.counts["failing"] += 2
        world = self.worlds[0]
        with world.active() as clients:
            FAILING[name](clients[who], random_datums(3, seed), world.folder)
            with pytest.raises(FAILURES):
                clients[who].forward_backward(random_datums(2, seed), "cross_entropy").result()


@pytest.fixture(scope="module")
def _worlds() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        Clients.worlds = [World(Path(folder) / name) for name in ("ours", "twins")]
        yield
        del Clients.worlds


@pytest.mark.usefixtures("_worlds")
@pytest.mark.parametrize(
    ("examples", "steps"),
    [pytest.param(6, 12, id="some calls"), pytest.param(40, 50, id="many calls", marks=pytest.mark.slow)],
)
def test_clients_among_failing_calls_are_clients_that_got_the_good_calls_only(examples: int, steps: int) -> None:
    Clients.counts.clear()
    kept = torch.get_rng_state()
    checks = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(Clients, settings=checks)
    finally:
        torch.set_rng_state(kept)
    print(
        f"training clients: {sum(Clients.counts.values())} calls, {Clients.counts['failing']} of them failing: {dict(Clients.counts)}"
    )
