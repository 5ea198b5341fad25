"""AdamW steps that check everything first: a refused step changes nothing.

The arithmetic is `torch.optim.AdamW`'s (decoupled weight decay, Loshchilov and Hutter 2019, arXiv:1711.05101). In addition,
hyperparameters come with each step, gradients are divided, measured and clipped here, and the state is saved by parameter
name and restored bit for bit.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import OptimizerError
from ...datums.types import AdamParams
from ..ranks import ALONE, Ranks
from ..shards import is_shard, local, part_of
from .norms import check_squares, gradient_norms, with_large_squares
from .state import STATE_KEYS, PreparedState, check_meta, check_tensors

__all__ = ["AdamW"]

#: For each hyperparameter: its condition, the condition in words, and a usual value.
_BOUNDS: dict[str, tuple[Callable[[float], bool], str, str]] = {
    "learning_rate": (lambda x: 0 <= x < math.inf, "a number >= 0 and finite", "1e-4"),
    "beta1": (lambda x: 0 <= x < 1, "a number in [0, 1)", "0.9"),
    "beta2": (lambda x: 0 <= x < 1, "a number in [0, 1)", "0.95"),
    "eps": (lambda x: 0 < x < math.inf, "a number > 0 and finite", "1e-12"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "a number >= 0 and finite", "0.0"),
    "grad_clip_norm": (lambda x: x >= 0, "a number >= 0", "1.0, or 0.0 for no clipping"),
}


class AdamW:
    """AdamW over named parameters; the torch optimizer and its moments are made at the first step.

    Uses torch's fused kernel where it is safe: float32 on CPU or CUDA, in a dense layout.

    Over several ranks each has one, and all call `step` together. It updates this rank's shards, in place; parameters that are
    not sharded lie whole on every rank and are updated alike on all. Norms are of whole gradients, and an error of one rank is
    raised on all of them.
    """

    def __init__(self, parameters: Mapping[str, Parameter], ranks: Ranks = ALONE) -> None:
        self._whole = dict(parameters)
        self._parameters = {name: Parameter(local(p)) if is_shard(p) else p for name, p in parameters.items()}
        self._ranks = ranks
        self._counts = {name: part_of(p, ranks).is_stored for name, p in parameters.items()}
        self._steps = 0
        self._made: torch.optim.AdamW | None = None

    def step(self, params: AdamParams, *, divisor: float = 1.0) -> dict[str, float]:
        """Divide the accumulated gradients by `divisor`, clip them, step, and clear them.

        Parameters without a gradient take no part. `grad_norm` is the norm over all parameters after the division
        and before the clip, `grad_norm_clipped` after it; `step` counts the calls, those with a learning rate of 0
        included.

        Raises OptimizerError for impossible numbers or when nothing is accumulated, NonFiniteGradientError for NaN
        or infinite gradients; then parameters, gradients and moments are as they were.
        """
        _check_params(params, divisor)
        with_grad = self._with_gradients()
        if not with_grad:
            raise OptimizerError(
                "optim_step has nothing to apply: no parameter has a gradient. Call forward_backward first; every "
                "optim_step clears the accumulated gradient"
            )
        with self._ranks.agree():
            norms = gradient_norms(with_grad)
        norms = self._of_all_ranks(norms)
        norm = math.hypot(*norms.values()) / divisor
        clip = float(params.grad_clip_norm)
        factor = clip / norm if 0 < clip < norm else 1.0
        if large := with_large_squares(with_grad, norms, factor / divisor):
            with self._ranks.agree():
                check_squares(large, factor / divisor)
        self._apply(with_grad, params, divisor, factor)
        return {
            "grad_norm": norm,
            "grad_norm_clipped": norm * factor,
            "learning_rate": float(params.learning_rate),
            "step": float(self._steps),
            "parameters_updated": float(sum(self._whole[name].numel() for name in with_grad)),
        }

    def _with_gradients(self) -> dict[str, Parameter]:
        """The parameters with a gradient, by name: what this rank holds of them and of it."""
        for name, whole in self._whole.items():
            if is_shard(whole):
                self._parameters[name].grad = None if whole.grad is None else local(whole.grad)
        return {name: p for name, p in self._parameters.items() if p.grad is not None}

    def _of_all_ranks(self, norms: dict[str, float]) -> dict[str, float]:
        """The norms of whole gradients, from those of what each rank holds: the same numbers on every rank.

        Of ranks that hold the same part of a gradient one counts: that which stores the parameter's part.
        """
        counted = [norm * self._counts[name] for name, norm in norms.items()]
        by_name = zip(norms, zip(*self._ranks.gather(counted), strict=True), strict=True)
        return {name: math.hypot(*own) for name, own in by_name}

    def _apply(self, with_grad: Mapping[str, Parameter], params: AdamParams, divisor: float, factor: float) -> None:
        """Take the step, all checks passed. Memory is allocated before the first gradient changes."""
        optimizer = self._optimizer()
        with self._ranks.agree():
            _lay_out_gradients(with_grad)
            self._make_moments(optimizer, with_grad.values())
        _scale_gradients(with_grad, divisor, factor)
        optimizer.param_groups[0].update(
            lr=float(params.learning_rate),
            betas=(float(params.beta1), float(params.beta2)),
            eps=float(params.eps),
            weight_decay=float(params.weight_decay),
        )
        optimizer.step()
        for parameter in (*self._parameters.values(), *self._whole.values()):
            parameter.grad = None
        self._steps += 1

    def meta(self) -> dict[str, Any]:
        """The part of the state for a checkpoint's manifest, JSON values only; `state_tensors()` has the rest.

        It is the same on every rank: parameters by their names in the model.
        """
        return {
            "optimizer": "adamw",
            "steps": self._steps,
            "parameters": list(self._parameters),
            "with_moments": [name for name, p in self._parameters.items() if p in self._state()],
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU of each parameter's step count and moments, as `exp_avg.<parameter name>` and so on.

        `step.` is [], the same on every rank. `exp_avg.` and `exp_avg_sq.` are like what this rank holds of the parameter: the
        rows of its shard, [0, ...] where it holds none, and all of it where it is not sharded.
        """
        state = self._state()
        return {
            f"{key}.{name}": state[p][key].detach().to("cpu", copy=True)
            for name, p in self._parameters.items()
            if p in state
            for key in STATE_KEYS
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore the state that `state_tensors()` and `meta()` returned. Raises CheckpointError as `prepared` does."""
        self.restore(self.prepared(tensors, meta))

    def prepared(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> PreparedState:
        """The state that `state_tensors()` and `meta()` returned, checked and copied, for `restore`; nothing is changed.

        tensors: this rank's part, of the shapes that its `state_tensors()` have. No collective: ranks agree on errors elsewhere.

        Raises CheckpointError naming the parameter when the state is incomplete, impossible or of other parameters.
        """
        steps, with_moments = check_meta(meta, self._parameters)
        check_tensors(tensors, with_moments, self._parameters, steps)
        moments: dict[Tensor, Any] = {}
        for name in with_moments:
            parameter = self._parameters[name]
            moments[parameter] = self._empty_moments(parameter)
            for key in STATE_KEYS:
                moments[parameter][key].copy_(tensors[f"{key}.{name}"])
        return PreparedState(steps, moments)

    def restore(self, state: PreparedState) -> None:
        """Take a prepared state."""
        optimizer = self._optimizer()
        optimizer.state.clear()
        optimizer.state.update(state.moments)
        self._steps = state.steps

    def _state(self) -> Mapping[Any, dict[str, Tensor]]:
        return {} if self._made is None else self._made.state

    def _optimizer(self) -> torch.optim.AdamW:
        if self._made is None:
            fused = all(_can_be_fused(p) for p in self._parameters.values())
            self._made = torch.optim.AdamW(list(self._parameters.values()), fused=fused, foreach=not fused)
        return self._made

    def _make_moments(self, optimizer: torch.optim.AdamW, parameters: Iterable[Parameter]) -> None:
        fresh: dict[Tensor, Any] = {p: self._empty_moments(p) for p in parameters if p not in optimizer.state}
        if fresh:
            zeros = [value for moments in fresh.values() for value in moments.values()]
            torch._foreach_zero_(zeros)  # type: ignore[attr-defined]
        optimizer.state.update(fresh)

    def _empty_moments(self, parameter: Parameter) -> dict[str, Tensor]:
        """Memory for what torch makes, as zeros, at a parameter's first step."""
        fused = self._optimizer().param_groups[0]["fused"]
        return {
            "step": torch.empty((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
            "exp_avg": torch.empty_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.empty_like(parameter, memory_format=torch.preserve_format),
        }


def _check_params(params: AdamParams, divisor: float) -> None:
    """Raise OptimizerError for the first number that cannot be meant."""
    for name, (holds, bounds, usual) in _BOUNDS.items():
        value = getattr(params, name)
        if not isinstance(value, numbers.Real) or not holds(float(value)):
            raise OptimizerError(f"AdamParams.{name} is {value!r}; it must be {bounds}. Usual: {usual}")
    if not 1e-30 < divisor < 1e30:
        raise OptimizerError(
            f"gradients cannot be divided by {divisor}: what grad_accumulation_normalization counts must be positive. "
            "Were all weights zero since the last optim_step?"
        )


def _lay_out_gradients(with_grad: Mapping[str, Parameter]) -> None:
    """Give each gradient the strides of its parameter; the values stay.

    torch's fused kernel (2.13) walks memory and pairs the wrong entries where strides differ, without a word.
    """
    for parameter in with_grad.values():
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _scale_gradients(with_grad: Mapping[str, Parameter], divisor: float, factor: float) -> None:
    """Divide and clip in place, in one launch for each dtype of gradients."""
    gradients = [p.grad for p in with_grad.values() if p.grad is not None]
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor / divisor)  # type: ignore[attr-defined]
    elif divisor != 1.0:
        torch._foreach_div_(gradients, divisor)  # type: ignore[attr-defined]


def _can_be_fused(parameter: Parameter) -> bool:
    dense = torch.empty_like(parameter, device="meta").stride() == parameter.stride()
    return parameter.dtype == torch.float32 and parameter.device.type in ("cpu", "cuda") and dense
