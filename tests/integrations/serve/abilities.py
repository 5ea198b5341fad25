"""What the installed `tinker` can do against a server: a program of its own, which needs no lossbook and takes any release.

Prints a JSON object as its last line: for each ability the numbers it gave, {"error": what it raised}, or LACKS where the release
has no such call. What came after an ability that failed is not tried.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import tinker
from tinker import types

#: Seconds for one ability: an SDK that is answered something that it does not know may ask again for minutes.
LIMIT = 120.0
LACKS = "not in this release"
TEXTS = [[1, 2, 3, 4, 5], [7, 8, 9]]


def ready(given: Any) -> Any:
    """The result of a future, or what is there at once: what is a future differs between releases."""
    return given.result() if hasattr(given, "result") else given


def datums() -> list[Any]:
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
                "weights": types.TensorData(data=[1.0] * (len(tokens) - 1), dtype="float32", shape=[len(tokens) - 1]),
            },
        )
        for tokens in TEXTS
    ]


class Story:
    """The abilities, in an order in which each may use what the ones before it made."""

    def connect(self) -> None:
        self.service = tinker.ServiceClient()
        assert self.service.get_server_capabilities().supported_models

    def create(self) -> None:
        self.client = ready(self.service.create_lora_training_client("tiny", rank=4, seed=0))
        assert self.client.get_info().model_data.model_name == "tiny"

    def forward(self) -> float:
        return self.client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]

    def train(self) -> list[float]:
        losses = []
        for _ in range(3):
            passed = self.client.forward_backward(datums(), "cross_entropy")
            stepped = self.client.optim_step(types.AdamParams(learning_rate=1e-2))
            losses.append(passed.result().metrics["loss:sum"])
            stepped.result()
        return losses

    def custom(self) -> float:
        def loss(data: list[Any], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
            return -(logprobs[0].sum() - logprobs[1].sum()).sigmoid().log(), {}

        self.client.forward_backward_custom(datums(), loss).result()
        self.client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
        return self.forward()

    def resume(self) -> float:
        self.path = self.client.save_state("kept").result().path
        again = ready(self.service.create_training_client_from_state_with_optimizer(self.path))
        again.forward_backward(datums(), "cross_entropy").result()
        again.optim_step(types.AdamParams(learning_rate=1e-2)).result()
        return again.forward(datums(), "cross_entropy").result().metrics["loss:sum"]

    def sample(self) -> list[int]:
        sampler = ready(self.client.save_weights_and_get_sampling_client("first"))
        params = types.SamplingParams(max_tokens=6, temperature=0.0)
        return list(sampler.sample(types.ModelInput.from_ints(TEXTS[0]), 1, params).result().sequences[0].tokens)

    def score(self) -> list[float]:
        self.named = self.client.save_weights_for_sampler("named").result().path
        sampler = ready(self.service.create_sampling_client(model_path=self.named))
        self.sampler = sampler
        return list(sampler.compute_logprobs(types.ModelInput.from_ints(TEXTS[0])).result())[1:]

    def likeliest(self) -> int:
        """How many tokens are told for each position of a prompt."""
        prompt, params = types.ModelInput.from_ints(TEXTS[0]), types.SamplingParams(max_tokens=1)
        sampled = self.sampler.sample(prompt, 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=3).result()
        return len(sampled.topk_prompt_logprobs[1])

    def list(self) -> None:
        rest, run = self.service.create_rest_client(), self.path.removeprefix("tinker://").split("/")[0]
        assert run in {one.training_run_id for one in rest.list_training_runs().result().training_runs}
        there = rest.list_checkpoints(run).result().checkpoints
        assert {self.path, self.named} == {one.tinker_path for one in there}

    def export(self) -> None:
        if not hasattr(self.client, "save_weights_external"):
            raise NotImplementedError
        assert self.client.save_weights_external("exported").result().path.endswith("/exported")

    def graph(self) -> float:
        if not hasattr(self.service, "create_custom_loss"):
            raise NotImplementedError
        handle = ready(self.service.create_custom_loss(scaled, {"logprobs": 1, "weights": 1}))
        return self.client.forward_backward_custom(datums(), handle).result().metrics["loss:sum"]

    def mistake(self) -> None:
        """What is wrong is told by the future, and the client goes on."""
        wrong = types.Datum(
            model_input=types.ModelInput.from_ints([10**6] * 4), loss_fn_inputs=datums()[0].loss_fn_inputs
        )
        try:
            self.client.forward_backward([wrong], "cross_entropy").result()
        except Exception as error:
            if "token ids must lie in" not in str(error):
                raise
        self.forward()


def scaled(logprobs: Any, weights: Any) -> Any:
    """A loss of one datum, to be traced."""
    return -(logprobs.exp() * weights).sum(), {}


def tried(ability: Callable[[], Any]) -> Any:
    """What it returns, or the error that it raises, or that it did not end."""
    told: list[Any] = [{"error": f"no end within {LIMIT:g} seconds"}]

    def run() -> None:
        try:
            told[0] = ability()
        except NotImplementedError:
            told[0] = LACKS
        except Exception as error:
            told[0] = {"error": f"{type(error).__name__}: {error}"}

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    return told[0]


if __name__ == "__main__":
    story, tellings = Story(), {"release": version("tinker")}
    for name in (name for name in vars(Story) if not name.startswith("_")):
        tellings[name] = tried(getattr(story, name))
        if isinstance(tellings[name], dict):
            break
    print(json.dumps(tellings), flush=True)
    os._exit(0)  # past the SDK's threads, of which a failed call may leave some
