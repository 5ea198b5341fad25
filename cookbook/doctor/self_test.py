"""The self test of `lossbook doctor`: a tiny run on the CPU and on each GPU."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...datums.builders.tokens import datum_from_tokens_weights
from ...datums.types import AdamParams, ModelInput, SamplingParams
from ...trainer import ServiceClient, TrainingClient
from .finding import Finding

TOKENS = list(b"two and two is four")


def self_tests() -> Iterator[Finding]:
    """On each device: training with a custom loss lowers it, a checkpoint restores the same logprobs, sampling works."""
    for device in ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))):
        started = time.monotonic()
        try:
            text = _trains(device)
        except Exception as error:  # any error is the finding
            yield Finding(
                "FAIL", f"training on {device}", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
        else:
            yield Finding("ok", f"training on {device}", f"{text}, {time.monotonic() - started:.1f} s")


def _trains(device: str) -> str:
    with tempfile.TemporaryDirectory(prefix="lossbook-doctor-") as folder:
        service = ServiceClient(device=device, checkpoint_dir=folder)
        training = service.create_lora_training_client("tiny", rank=4, seed=0)
        losses = [_step(training) for _ in range(3)]
        if not (all(map(math.isfinite, losses)) and losses[-1] < losses[0]):
            raise ArithmeticError(f"the loss did not fall in three steps on the same tokens: {losses}")
        saved = training.save_state("doctor").result().path
        again = service.create_training_client_from_state(str(Path(saved)), optimizer=True)
        # Bit for bit on a CPU. On a GPU the order of sums may change, and bfloat16 rounds by up to 0.05 nats.
        if not torch.allclose(_logprobs(training), _logprobs(again), rtol=0, atol=0 if device == "cpu" else 0.05):
            raise ArithmeticError("a checkpoint restored other logprobs than those that were saved")
        sampler = training.save_weights_and_get_sampling_client()
        params = SamplingParams(max_tokens=4, temperature=0.0, stop=[])
        answer = sampler.sample(ModelInput.from_ints(TOKENS[:4]), sampling_params=params).result().sequences[0]
        if len(answer.tokens) != 4:
            raise ArithmeticError(f"the sampler was asked for 4 tokens and returned {len(answer.tokens)}")
    return f"3 steps with a custom loss ({losses[0]:.2f} to {losses[-1]:.2f} nats per token), a checkpoint, a sample"


def negative_logprobs(logprobs: Tensor) -> Tensor:
    """The simplest custom loss: -logprobs [T], nats."""
    return -logprobs


def _step(training: TrainingClient) -> float:
    datum = datum_from_tokens_weights(TOKENS, [1.0] * len(TOKENS))
    output = training.forward_backward([datum], negative_logprobs, {"reduction": "token-mean"}).result()
    training.optim_step(AdamParams(learning_rate=1e-2)).result()
    return output.metrics["loss:sum"]


def _logprobs(training: TrainingClient) -> Tensor:
    datum = datum_from_tokens_weights(TOKENS, [1.0] * len(TOKENS))
    return training.forward([datum]).result().loss_fn_outputs[0]["logprobs"].to_torch()
