"""Doors that break one promise each, made of the Tinker door by wrappers, and which promises that may show in."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lossbook.integrations import tinker
from lossbook.integrations.tinker.futures import APIFuture, DoneFuture


class Training:
    """A training client that hands on everything; doors override what they break."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def changed(self, data: list[Any]) -> list[Any]:
        """What is made of a call's datums."""
        return data

    def forward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        return self.real.forward(self.changed(data), loss, config)

    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        return self.real.forward_backward(self.changed(data), loss, config)


class Sampler:
    """A sampling client that hands on everything."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Door:
    """A service client whose training and sampling clients are of these classes."""

    training: type[Training] = Training
    sampler: type[Sampler] = Sampler

    def __init__(self) -> None:
        self.real = tinker.ServiceClient()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def create_lora_training_client(self, *args: Any, **kwargs: Any) -> Any:
        return self._training(self.real.create_lora_training_client(*args, **kwargs).result())

    def create_training_client_from_state(self, path: str) -> Any:
        return self._training(self.real.create_training_client_from_state(path).result())

    def create_training_client_from_state_with_optimizer(self, path: str) -> Any:
        return self._training(self.real.create_training_client_from_state_with_optimizer(path).result())

    def create_sampling_client(self, **kwargs: Any) -> Any:
        return DoneFuture(self.sampler(self.real.create_sampling_client(**kwargs).result()))

    def _training(self, real: Any) -> Any:
        client: Any = self.training(real)
        make = self.sampler
        if "save_weights_and_get_sampling_client" not in type(client).__dict__:
            client.save_weights_and_get_sampling_client = lambda: DoneFuture(
                make(real.save_weights_and_get_sampling_client().result())
            )
        return DoneFuture(client)


def door(training: type[Training] = Training, sampler: type[Sampler] = Sampler) -> type[Door]:
    return type("BrokenDoor", (Door,), {"training": training, "sampler": sampler})


def scaled(datum: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A datum whose weights, or advantages, are changed."""
    key = "weights" if "weights" in datum.loss_fn_inputs else "advantages"
    if key not in datum.loss_fn_inputs:
        return datum
    own = datum.loss_fn_inputs[key].to_numpy()
    return dataclasses.replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, key: change(own).astype(np.float32)})


class MeanOverTokens(Training):
    def changed(self, data: list[Any]) -> list[Any]:
        tokens = sum(len(one.model_input.to_ints()) for one in data)
        return [scaled(one, lambda own: own / tokens) for one in data]


class DropsNegativeWeights(Training):
    def changed(self, data: list[Any]) -> list[Any]:
        return [scaled(one, lambda own: own.clip(0)) if "weights" in one.loss_fn_inputs else one for one in data]


class WeightsAsMask(Training):
    def changed(self, data: list[Any]) -> list[Any]:
        return [scaled(one, lambda own: own != 0) if "weights" in one.loss_fn_inputs else one for one in data]


class ForwardLeavesGradients(Training):
    def forward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        return self.real.forward_backward(data, loss, config)


class GradientOfTheLastCall(Training):
    last: Any = None

    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        future = self.real.forward(data, loss, config)
        future.result()
        self.last = (data, loss, config)
        return future

    def optim_step(self, params: Any) -> Any:
        if self.last is not None:
            self.real.forward_backward(*self.last).result()
            self.last = None
        return self.real.optim_step(params)


class SkipsRateZero(Training):
    def optim_step(self, params: Any) -> Any:
        if params.learning_rate == 0:
            return DoneFuture(tinker.OptimStepResponse(metrics={}))
        return self.real.optim_step(params)


class IgnoresSettings(Training):
    def forward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        return self.real.forward(data, loss, None)

    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        return self.real.forward_backward(data, loss, None)


class CustomIsReversed(Training):
    def forward_backward_custom(self, data: list[Any], loss_fn: Any) -> Any:
        def reversed_loss(data: list[Any], logprobs: list[Any]) -> Any:
            loss, metrics = loss_fn(data, logprobs)
            return -loss, metrics

        return self.real.forward_backward_custom(data, reversed_loss)


class KnowsEveryLoss(Training):
    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        known = loss if loss in ("importance_sampling", "ppo", "cispo", "dro", "gspo") else "cross_entropy"
        return self.real.forward_backward(data, known, config)


class HalfABatch(Training):
    """Works on a call's datums one by one, so that those before a mistake stay in the gradient."""

    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        if len(data) == 2 and loss == "cross_entropy":
            self.real.forward_backward(data[:1], loss, config).result()
            self.real.forward_backward(data[1:], loss, config).result()
            return self.real.forward(data, loss, config)
        return self.real.forward_backward(data, loss, config)


class Never(APIFuture[Any]):
    def result(self, timeout: float | None = None) -> Any:
        return concurrent.futures.Future[Any]().result(timeout)

    async def result_async(self, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def future(self) -> Any:
        raise NotImplementedError


class HangsOnMistakes(Training):
    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        try:
            future = self.real.forward_backward(data, loss, config)
            future.result()
        except Exception:
            return Never()
        return future


class Late(APIFuture[Any]):
    """Runs its call when it is asked for the result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def result(self, timeout: float | None = None) -> Any:
        return self.call().result(timeout)

    async def result_async(self, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def future(self) -> Any:
        raise NotImplementedError


class StepsFirst(Training):
    def forward_backward(self, data: list[Any], loss: str, config: Any = None) -> Any:
        return Late(lambda: self.real.forward_backward(data, loss, config))


class OneTarget(Training):
    """Refuses several targets for a position."""

    def changed(self, data: list[Any]) -> list[Any]:
        if any(len(one.loss_fn_inputs["target_tokens"].shape) > 1 for one in data):
            raise tinker.RequestFailedError(
                "target_tokens must be one per position", "1", tinker.types.RequestErrorCategory.User
            )
        return data


class FollowsTraining(Training):
    def save_weights_and_get_sampling_client(self) -> Any:
        return DoneFuture(Following(self.real))


class Following(Sampler):
    def __getattr__(self, name: str) -> Any:
        return getattr(self.real.save_weights_and_get_sampling_client().result(), name)


class Unscaled(Sampler):
    """Gives logprobs of temperature 1 at every temperature."""

    def sample(self, prompt: Any, count: int, params: Any, **options: Any) -> Any:
        response = self.real.sample(prompt, count, params, **options).result()
        return DoneFuture(
            dataclasses.replace(response, sequences=[self._plain(prompt, one) for one in response.sequences])
        )

    def _plain(self, prompt: Any, sequence: Any) -> Any:
        whole = tinker.ModelInput.from_ints([*prompt.to_ints(), *sequence.tokens])
        logprobs = self.real.compute_logprobs(whole).result()[-len(sequence.tokens) :]
        return dataclasses.replace(sequence, logprobs_np=np.array(logprobs, np.float32))


class Parameters(Sampler):
    """Samples with other parameters than it was given."""

    change: Callable[[Any], dict[str, Any]]

    def sample(self, prompt: Any, count: int, params: Any, **options: Any) -> Any:
        return self.real.sample(prompt, count, params.model_copy(update=type(self).change(params)), **options)


class NoTemperature(Parameters):
    change = staticmethod(lambda params: {"temperature": 1.0})


class NoSeed(Parameters):
    change = staticmethod(lambda params: {"seed": None})


class OneTokenMore(Parameters):
    change = staticmethod(lambda params: {"max_tokens": params.max_tokens + 1})


class NoStop(Parameters):
    change = staticmethod(lambda params: {"stop": []})


class OtherLogprobs(Sampler):
    def compute_logprobs(self, prompt: Any) -> Any:
        given = self.real.compute_logprobs(prompt).result()
        return DoneFuture([None if one is None else one - 0.05 for one in given])


class NoOptimizer(Door):
    def create_training_client_from_state_with_optimizer(self, path: str) -> Any:
        return self.create_training_client_from_state(path)


class AlwaysOptimizer(Door):
    def create_training_client_from_state(self, path: str) -> Any:
        return self.create_training_client_from_state_with_optimizer(path)


#: door: (promises that it must break, other promises that this shows in too)
BROKEN: dict[str, tuple[type[Door], set[str], set[str]]] = {
    "normalises by tokens": (
        door(MeanOverTokens),
        {"loss.sum", "gradient.batching", "gradient.sum", "loss.cross_entropy"},
        {"loss.*", "gradient.*"},
    ),
    "drops negative weights": (
        door(DropsNegativeWeights),
        {"loss.weights", "gradient.weights"},
        {"loss.cross_entropy", "loss.multi_target", "gradient.*", "step.rate_zero"},
    ),
    "takes weights for a mask": (
        door(WeightsAsMask),
        {"loss.weights", "gradient.weights"},
        {"loss.cross_entropy", "loss.multi_target", "gradient.*", "step.rate_zero"},
    ),
    "leaves gradients of a forward": (
        door(ForwardLeavesGradients),
        {"loss.no_side_effect"},
        {"checkpoint.*", "error.*"},
    ),
    "keeps the last call's gradient": (door(GradientOfTheLastCall), {"gradient.batching"}, {"gradient.*"}),
    "skips steps of rate 0": (door(SkipsRateZero), {"step.rate_zero", "step.clears"}, set()),
    "ignores a loss's settings": (
        door(IgnoresSettings),
        {"loss.ppo"},
        {"loss.cispo", "loss.dro", "loss.gspo", "gradient.ppo", "gradient.cispo", "gradient.dro", "gradient.gspo"},
    ),
    "has custom losses reversed": (door(CustomIsReversed), {"gradient.custom", "gradient.traced"}, set()),
    "knows every loss": (door(KnowsEveryLoss), {"error.loss"}, set()),
    "keeps half a batch": (door(HalfABatch), {"error.shape", "error.token"}, set()),
    "hangs on mistakes": (door(HangsOnMistakes), {"error.loss", "error.shape", "error.token", "error.input"}, set()),
    "steps before queued calls": (door(StepsFirst), {"order.queued"}, set()),
    "has samplers that follow training": (door(FollowsTraining), {"snapshot.fixed"}, {"snapshot.saved"}),
    "returns unscaled logprobs": (door(sampler=Unscaled), {"sample.logprobs_temperature"}, {"sample.temperature"}),
    "samples at temperature 1": (door(sampler=NoTemperature), {"sample.logprobs_temperature"}, {"sample.*"}),
    "ignores seeds": (door(sampler=NoSeed), {"sample.seed"}, set()),
    "samples a token more": (door(sampler=OneTokenMore), {"sample.max_tokens"}, set()),
    "ignores stop tokens": (door(sampler=NoStop), {"sample.stop"}, set()),
    "has a sampler of other numbers": (
        door(sampler=OtherLogprobs),
        {"logprobs.agree"},
        {"logprobs.*", "sample.greedy"},
    ),
    "loads no optimizer": (NoOptimizer, {"checkpoint.optimizer"}, set()),
    "always loads the optimizer": (AlwaysOptimizer, {"checkpoint.weights"}, set()),
}
