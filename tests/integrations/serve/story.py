"""What a program written for Tinker does, with the numbers it gets. It runs on the SDK and on the door in this process."""

from __future__ import annotations

from typing import Any

import torch

PROMPT = [1, 2, 3]
TEXTS = [[1, 2, 3, 4, 5], [7, 8, 9], [3, 3, 3, 3]]


def datums(types: Any) -> list[Any]:
    """Three datums for supervised losses."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
                "weights": types.TensorData(
                    data=[0.5 + i for i in range(len(tokens) - 1)], dtype="float32", shape=[len(tokens) - 1]
                ),
            },
        )
        for tokens in TEXTS
    ]


def policy_datums(types: Any) -> list[Any]:
    """The same for losses over sampled tokens."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
                "logprobs": types.TensorData(data=[-6.0] * (len(tokens) - 1), dtype="float32", shape=[len(tokens) - 1]),
                "advantages": types.TensorData(
                    data=[1.0 - i for i in range(len(tokens) - 1)], dtype="float32", shape=[len(tokens) - 1]
                ),
            },
        )
        for tokens in TEXTS
    ]


def topk_datums(types: Any) -> list[Any]:
    """Two target tokens per position."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints([1, 2]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=[2, 5, 3, 6], dtype="int64", shape=[2, 2]),
                "weights": types.TensorData(data=[0.7, 0.3, 0.6, 0.4], dtype="float32", shape=[2, 2]),
            },
        )
    ]


def numbers(output: Any) -> dict[str, Any]:
    """The loss and the logprobs of a forward_backward."""
    logprobs = [list(one["logprobs"].data) for one in output.loss_fn_outputs]
    return {"loss": output.metrics["loss:sum"], "logprobs": logprobs}


def margin_loss(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """A loss of the caller's own over all datums."""
    sums = torch.stack([one.sum() for one in logprobs])
    loss = -torch.nn.functional.logsigmoid(sums[0] - sums[1:]).sum()
    return loss, {"margin": float((sums[0] - sums[1:]).mean().detach())}


def scaled_loss(logprobs: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss of one datum, to be traced."""
    return -(logprobs.exp() * weights).sum(), {"custom/weight:sum": weights.sum()}


def train(service: Any, types: Any) -> tuple[Any, dict[str, Any]]:
    """Trains a model; returns its client and the numbers."""
    client = service.create_lora_training_client("tiny", rank=4, seed=0).result()
    step = types.AdamParams(learning_rate=1e-2)
    told: dict[str, Any] = {}
    told["forward"] = numbers(client.forward(datums(types), "cross_entropy").result())
    for name, data in (
        ("cross_entropy", datums(types)),
        ("poly1", datums(types)),
        ("importance_sampling", policy_datums(types)),
        ("ppo", policy_datums(types)),
        ("cispo", policy_datums(types)),
        ("cross_entropy", topk_datums(types)),
    ):
        future = client.forward_backward(data, name)
        stepped = client.optim_step(step)
        told[f"{name} {len(told)}"] = numbers(future.result())
        told[f"step {len(told)}"] = stepped.result().metrics["grad_norm"]
    custom = client.forward_backward_custom(datums(types), margin_loss).result()
    told["callable"] = {**numbers(custom), "margin": custom.metrics["margin"]}
    client.optim_step(step).result()
    handle = service.create_custom_loss(scaled_loss, {"logprobs": 1, "weights": 1}).result()
    traced = client.forward_backward_custom(datums(types), handle).result()
    told["handle"] = {**numbers(traced), "weight": traced.metrics["custom/weight:sum"]}
    client.optim_step(step).result()
    told["after"] = numbers(client.forward(datums(types), "cross_entropy").result())
    return client, told


def sample(sampler: Any, types: Any) -> dict[str, Any]:
    """Samples; returns tokens and logprobs."""
    prompt = types.ModelInput.from_ints(PROMPT)
    greedy = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=6, temperature=0.0)).result()
    drawn = sampler.sample(
        prompt,
        3,
        types.SamplingParams(max_tokens=6, temperature=0.7, seed=5, stop=[]),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
    ).result()
    return {
        "greedy": list(greedy.sequences[0].tokens),
        "drawn": [(list(one.tokens), list(one.logprobs), one.stop_reason) for one in drawn.sequences],
        "prompt": list(drawn.prompt_logprobs),
        "likeliest": [None if one is None else [tuple(pair) for pair in one] for one in drawn.topk_prompt_logprobs],
        "logprobs": list(sampler.compute_logprobs(prompt).result()),
    }
