"""The configured loss of reinforcement learning: any policy loss, with a KL to a reference and a rollout correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...datums.errors import LossConfigError, LossContractError, MissingInput
from ...datums.types import Datum, TensorData
from ...losses.loss.loss import Loss, Mixture
from ...losses.registry import get_loss
from ...losses.spec.spec import GROUP_KEY
from ...losses.variants.suffixes import ROLLOUT_SUFFIXES, unknown_suffix
from ..run.configs import mean_over_tokens

if TYPE_CHECKING:
    from ...trainer import TrainingClient
    from ...trainer.clients.reference import ReferenceClient
    from ...trainer.responses import ForwardBackwardOutput

#: The inputs that rollouts have for a loss.
INPUTS = ("target_tokens", "weights", "sampling_logprobs", "advantages", "ref_logprobs", "rollout_logprobs", GROUP_KEY)


class PolicySettings(Protocol):
    """The settings that choose the loss."""

    @property
    def loss(self) -> str: ...
    @property
    def loss_config(self) -> Mapping[str, Any]: ...
    @property
    def kl_coefficient(self) -> float | None: ...
    @property
    def rollout_correction(self) -> str | None: ...


def policy_loss(config: PolicySettings) -> Loss | Mixture:
    """The configured loss, as `mean_over_tokens` gives it, with the rollout correction and the KL to the reference.

    kl_coefficient sets the loss's setting of that name where it has one; otherwise `reference_kl` is added. Raises
    UnknownLossError and LossConfigError with the likeliest name, LossContractError and MissingInput for losses that
    rollouts cannot serve.
    """
    name = config.loss
    if config.rollout_correction is not None:
        for suffix in config.rollout_correction.split("+"):
            if suffix not in ROLLOUT_SUFFIXES:
                raise LossConfigError(f"rollout_correction={config.rollout_correction!r}: {unknown_suffix(suffix)}")
        name = f"{name}+{config.rollout_correction}"
    loss = _with_kl(mean_over_tokens(name, config.loss_config), config.kl_coefficient)
    for _, part in loss.parts:
        _check_inputs(part)
    return loss


def reads(loss: Loss | Mixture, name: str) -> bool:
    """Whether a configured loss reads an input: a required one, or one that its settings require."""
    for _, part in loss.parts:
        for wanted in part.spec.inputs:
            setting = part.spec.required_if.get(name)
            if wanted.name == name and (wanted.required or (setting is not None and bool(part.settings.get(setting)))):
                return True
    return False


def with_trainer_logprobs(data: Sequence[Datum], training: TrainingClient) -> list[Datum]:
    """Datums with the trainer's current logprobs as `sampling_logprobs`, and the sampler's as `rollout_logprobs`."""
    current = _logprobs(training, data)
    return [
        _with(datum, rollout_logprobs=datum.loss_fn_inputs["sampling_logprobs"], sampling_logprobs=logprobs)
        for datum, logprobs in zip(data, current, strict=True)
    ]


def with_reference(data: Sequence[Datum], reference: ReferenceClient) -> list[Datum]:
    """Datums with `ref_logprobs`."""
    outputs = _logprobs(reference, data)
    return [_with(datum, ref_logprobs=logprobs) for datum, logprobs in zip(data, outputs, strict=True)]


def mismatch(data: Sequence[Datum], output: ForwardBackwardOutput) -> dict[str, float]:
    """The mismatch of sampler and trainer: two estimates of KL(sampler || trainer), nats per token.

    output: of these datums, under the weights at the beginning of the step. On policy both are 0 up to rounding; with
    rollouts sampled ahead they include the update in between.
    """
    differences = []
    for datum, outputs in zip(data, output.loss_fn_outputs, strict=True):
        inputs = datum.loss_fn_inputs
        sampled = inputs.get("rollout_logprobs", inputs["sampling_logprobs"]).to_numpy()
        written = inputs["weights"].to_numpy() != 0
        differences.append((outputs["logprobs"].to_numpy() - sampled)[written].astype(np.float64))
    difference = np.concatenate(differences)
    k3 = np.expm1(difference) - difference
    return {"mismatch_k1": float(-difference.mean()), "mismatch_k3": float(k3.mean())}


def _with_kl(loss: Loss | Mixture, coefficient: float | None) -> Loss | Mixture:
    if coefficient is None:
        return loss
    if isinstance(loss, Loss) and "kl_coefficient" in loss.settings:
        return get_loss(loss, kl_coefficient=coefficient)
    if coefficient == 0:
        return loss
    reduction = loss.reduction if isinstance(loss, Loss) and loss.spec.per == "token" else "token-mean"
    norm = {"norm_length": loss.norm_length} if isinstance(loss, Loss) and loss.norm_length is not None else {}
    return loss + coefficient * get_loss("reference_kl", reduction=reduction, **norm)


def _check_inputs(loss: Loss) -> None:
    if loss.couples == "pair" or loss.spec.candidates:
        raise LossContractError(
            f"{loss.name} is over pairs or candidate tokens, but rollouts are single sampled sequences"
        )
    missing = [wanted.name for wanted in loss.spec.inputs if wanted.required and wanted.name not in INPUTS]
    if missing:
        raise MissingInput(
            f"{loss.name} reads {', '.join(missing)}, which rollouts do not have; they have {', '.join(INPUTS[2:])}"
        )


def _logprobs(client: TrainingClient | ReferenceClient, data: Sequence[Datum]) -> list[TensorData]:
    bare = [_with(datum, only=("target_tokens", "weights")) for datum in data]
    output = client.forward(bare, "cross_entropy").result()
    return [one["logprobs"] for one in output.loss_fn_outputs]


def _with(datum: Datum, only: Sequence[str] | None = None, **inputs: TensorData) -> Datum:
    kept = {key: value for key, value in datum.loss_fn_inputs.items() if only is None or key in only}
    return Datum(datum.model_input, {**kept, **inputs})
