"""A training run of the official SDK under whose feet the server is killed, and who kills it.

`train` is the program: it trains, saves every few steps, and on a failure of category `server` goes on from the checkpoint that the
failure names. `killed_run` runs it against a server that is killed at random moments and started again. What is compared is told at
its end: the logprobs of fixed data, and each checkpoint and result that was acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import story
from ..process import ROOT, Server
from ..test_stopping import free_port

#: Steps between two checkpoints.
EVERY = 2
STEPS_PER_KILL = 2
_NAMED = re.compile(r"tinker://\S+/weights/[\w.-]+")


@dataclass
class Run:
    """What a program knows of its training: steps whose end it was told, in order; checkpoints; results by request.

    at: the next step of the client that it has.
    """

    at: int = 0
    steps: list[int] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def data_of(types: Any, step: int) -> list[Any]:
    """The data of a step, which are others at each."""
    rng = random.Random(step)
    texts = [[rng.randrange(1, 250) for _ in range(rng.randrange(4, 24))] for _ in range(6)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
                "weights": types.TensorData(data=[1.0] * (len(tokens) - 1), dtype="float32", shape=[len(tokens) - 1]),
            },
        )
        for tokens in texts
    ]


def train(steps: int) -> dict[str, Any]:
    """Train so many steps whatever happens to the server; returns what is compared."""
    import tinker

    service = tinker.ServiceClient()
    run, ids, path, client = Run(), _heard(), None, None
    while True:
        try:
            client = _client(service, path) if client is None else client
            _steps(client, tinker, run, ids, steps)
            final = story.numbers(client.forward(data_of(tinker.types, -1), "cross_entropy").result())
            break
        except tinker.RequestFailedError as error:
            path, client = _after(error, run, path, client)
        except tinker.APIConnectionError as error:  # create_model has no retries of its own
            run.failures.append(type(error).__name__)
            time.sleep(0.5)
    paths = [
        one.tinker_path for one in service.create_rest_client().list_user_checkpoints(limit=1000).result().checkpoints
    ]
    service.close("success").result(timeout=600)
    return {
        "final": final,
        "steps": run.steps,
        "saved": run.saved,
        "results": run.results,
        "failures": run.failures,
        "listed": paths,
    }


def _after(error: Any, run: Run, path: str | None, client: Any) -> tuple[str | None, Any]:
    """From which checkpoint the program goes on, and with which client; None: with a new one."""
    run.failures.append(str(error))
    assert error.category.value == "server", error
    if (named := _NAMED.search(str(error))) is not None:
        run.at = _step_of(named.group())
        return named.group(), None
    if "create it again" in str(error):
        run.at = 0
        return None, None
    assert "send the request again" in str(error) or "send it again" in str(error), error
    return path, client  # the model is as it was after all that this program was told of


def _heard() -> list[str]:
    """Ids of the optimizer's steps as the SDK gets their promises: its futures do not tell them."""
    import tinker.lib.api_future_impl as futures

    ids: list[str] = []
    made = futures._APIFuture.__init__

    def init(self: Any, model_cls: Any, holder: Any, untyped_future: Any, *args: Any, **kwargs: Any) -> None:
        made(self, model_cls, holder, untyped_future, *args, **kwargs)
        if model_cls.__name__ == "OptimStepResponse":
            ids.append(untyped_future.request_id)

    futures._APIFuture.__init__ = init
    return ids


def _client(service: Any, path: str | None) -> Any:
    if path is None:
        return service.create_lora_training_client("tiny", rank=2, seed=0).result()
    return service.create_training_client_from_state_with_optimizer(path).result()


def _step_of(path: str | None) -> int:
    """The steps that a checkpoint has: its name says so."""
    return 0 if path is None else int(path.rpartition("-")[2])


def _steps(client: Any, tinker: Any, run: Run, ids: list[str], steps: int) -> None:
    """Train from one step to another, each acknowledged before the next but one."""
    for step in range(run.at, steps):
        forward = client.forward_backward(data_of(tinker.types, step), "cross_entropy")
        stepped = client.optim_step(tinker.types.AdamParams(learning_rate=1e-2))
        forward.result()
        told = stepped.result()
        run.steps.append(step)
        run.at = step + 1
        run.results[ids[-1]] = json.dumps(told.metrics, sort_keys=True)
        print(f"step {step}", flush=True)
        if (step + 1) % EVERY == 0:
            saved = client.save_state(f"after-{step + 1}").result()
            run.saved[saved.path] = step + 1


@dataclass
class Outcome:
    """What came of a killed run: what the program told, when the server was killed, and what it said of old requests."""

    told: dict[str, Any]
    kills: int
    results: dict[str, str]
    seconds: float

    def summary(self) -> str:
        """In one line."""
        steps, failures = self.told["steps"], self.told["failures"]
        again = len(steps) - len(set(steps))
        return (
            f"{self.kills} kills in {self.seconds:.0f} s, {len(set(steps))} steps, {again} of them trained again from a checkpoint, "
            f"{len(failures)} failures told, {len(self.told['saved'])} checkpoints and {len(self.results)} results asked for in the end"
        )


def undisturbed_run(server: Server, kills: int) -> dict[str, Any]:
    """What the same program tells whose server is not killed."""
    out, err = (program := _program(server, kills)).communicate(timeout=1800)
    assert program.returncode == 0, err[-4000:]
    return json.loads(out.splitlines()[-1])


def _program(server: Server, kills: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", f"{__package__}.killed", str(kills * STEPS_PER_KILL + 2)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TINKER_BASE_URL": server.url, "TINKER_API_KEY": "tml-local"},
    )


def killed_run(root: Path, kills: int, seed: int, *flags: str) -> Outcome:
    """Train while the server is killed `kills` times with SIGKILL: after a step that is drawn, and a part of a second more."""
    rng, port, begun = random.Random(seed), str(free_port()), time.monotonic()

    def start() -> Server:
        return Server(root, "--port", port, "--hold-seconds", "3", "--fetched-seconds", "7200", *flags)

    server = start()
    program = _program(server, kills)
    assert program.stdout is not None
    try:
        done = 0
        for kill in range(kills):
            while done <= kill * STEPS_PER_KILL:
                line = program.stdout.readline()
                assert line.startswith("step "), line + (program.communicate()[1][-4000:] if not line else "")
                done = max(done, int(line.split()[1]) + 1)
            time.sleep(rng.uniform(0, 0.3))
            server.kill()
            server = start()
        out, err = program.communicate(timeout=900)
        assert program.returncode == 0, err[-4000:]
        told = json.loads(out.splitlines()[-1])
        return Outcome(told, kills, _asked_again(server, told["results"]), time.monotonic() - begun)
    finally:
        program.kill()
        program.communicate()
        server.kill()


def _asked_again(server: Server, results: dict[str, str]) -> dict[str, str]:
    """What the server answers now for each request whose result the program was told."""
    from .client import Client

    with Client(server.url) as client:
        return {one: json.dumps(client.outcome(one).get("metrics"), sort_keys=True) for one in results}


def check(outcome: Outcome, undisturbed: dict[str, Any]) -> None:
    """Nothing was applied twice or left out, and nothing that was acknowledged is missing."""
    told = outcome.told
    assert told["final"] == undisturbed["final"], "the weights are those of a run that nobody disturbed"
    assert sorted(set(told["steps"])) == undisturbed["steps"]
    assert set(told["saved"]) <= set(told["listed"]), "an acknowledged checkpoint is missing"
    assert outcome.results == told["results"], "an acknowledged result is missing, or is another"


if __name__ == "__main__":
    print(json.dumps(train(int(sys.argv[1]))), flush=True)
