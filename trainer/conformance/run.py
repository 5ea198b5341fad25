"""`check_model`: all checks of a model, and how the trainer runs it."""

from __future__ import annotations

import torch

from ...datums.errors import LossbookError
from ..clients.service import ServiceClient
from ..clients.training import TrainingClient
from .adapters import lora_of
from .checks import CHECKS, Check
from .report import ModelCheck, ModelReport
from .under_test import DoesNotApply, ModelUnderTest


def check_model(model: str | TrainingClient, *, device: str | None = None) -> ModelReport:
    """Check that logprobs, gradients and samples of a model are its own however they are computed, and what is saved of it.

    model  a name that `ServiceClient` takes, or a training client, whose weights, gradients and random state stay as they are

    Takes seconds on a small model, half a minute on one of 135 million weights and one core, and for a while as much memory
    and temporary disk space again as the weights in float32. Raises ModelError where the model cannot be loaded.
    """
    client = model if isinstance(model, TrainingClient) else ServiceClient(device=device).create_training_client(model)
    engine = client.local.engine
    runs = client.how_it_runs().result()
    if engine.model.kind != "decoder":
        reason = "an encoder has no logprobs of next tokens"
        checks = tuple(ModelCheck(name, "does not apply", reason) for name in CHECKS)
        return ModelReport(engine.model.name, checks, runs)
    test = ModelUnderTest(engine)
    devices = [engine.model.device] if engine.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # loading an export draws numbers
        checks = tuple(_checked(name, check, test) for name, check in CHECKS.items())
    return ModelReport(engine.model.name, checks, f"{runs}; {lora_of(engine.model)}")


def _checked(name: str, check: Check, test: ModelUnderTest) -> ModelCheck:
    try:
        off = check(test)
    except DoesNotApply as reason:
        return ModelCheck(name, "does not apply", str(reason))
    except (LossbookError, ArithmeticError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        return ModelCheck(name, "fails", f"{type(error).__name__}: {' '.join(str(error).split())}")
    return ModelCheck(name, "holds" if off.holds else "fails", str(off))
