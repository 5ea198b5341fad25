"""`check_model`: all checks of a model, and how the trainer runs it."""

from __future__ import annotations

import torch

from ...datums.errors import LossbookError
from ..clients.service import ServiceClient
from ..clients.training import TrainingClient
from ..engine.engine import Engine
from ..packing.hidden import packing_way, shares_prefixes
from ..packing.probes import verdict
from ..sampling.plan import NO_CACHE, plan_of
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
    engine = client._engine
    if engine.model.kind != "decoder":
        reason = "an encoder has no logprobs of next tokens"
        checks = tuple(ModelCheck(name, "does not apply", reason) for name in CHECKS)
        return ModelReport(engine.model.name, checks, "pads; every token is computed")
    test = ModelUnderTest(engine)
    devices = [engine.model.device] if engine.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # loading an export draws numbers
        checks = tuple(_checked(name, check, test) for name, check in CHECKS.items())
    return ModelReport(engine.model.name, checks, summary_of(engine))


def summary_of(engine: Engine) -> str:
    """What the trainer does with a model, in one line: packs or pads, cuts, shares, and samples with which cache."""
    model, batching = engine.model, engine.settings.batching
    ways = {"packed": "packs", "padded": "pads", "single": "runs one sequence at a time"}
    why = "" if packing_way(model) else f" (packs: no, {verdict(model, 'blocks').reason})"
    shares = "shares prefixes" if shares_prefixes(model, batching) else "shares no prefixes"
    cuts = verdict(model, "cut")
    plan = plan_of(model)
    cache = "a cache that keeps each prompt once" if plan.share else "the model's own cache"
    samples = "samples without a cache" if plan == NO_CACHE else f"samples with {cache}"
    together = "" if plan.pads else ", prompts of one length together"
    cut = "cuts what is not read" if cuts else f"computes every token ({cuts.reason})"
    return f"{ways[batching or 'padded']}{why}; {shares}; {cut}; {samples}{together}; {lora_of(model)}"


def _checked(name: str, check: Check, test: ModelUnderTest) -> ModelCheck:
    try:
        off = check(test)
    except DoesNotApply as reason:
        return ModelCheck(name, "does not apply", str(reason))
    except (LossbookError, ArithmeticError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        return ModelCheck(name, "fails", f"{type(error).__name__}: {' '.join(str(error).split())}")
    return ModelCheck(name, "holds" if off.holds else "fails", str(off))
