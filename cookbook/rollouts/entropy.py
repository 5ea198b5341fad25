"""The entropy bonus of reinforcement learning: of a fixed coefficient, or of one that follows the policy's entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ...losses.loss.loss import Loss, Mixture
from ...losses.registry import get_loss
from ...losses.value.adaptive import AdaptiveEntropy

if TYPE_CHECKING:
    from ...trainer.responses import ForwardBackwardOutput

#: Where the mean entropy of a step stands among its metrics.
MEASURED = "entropy_bonus/entropy"


class EntropySettings(Protocol):
    """The settings of the bonus."""

    @property
    def entropy_coefficient(self) -> float: ...
    @property
    def entropy_target(self) -> float | None: ...
    @property
    def entropy_step(self) -> float: ...
    @property
    def entropy_highest(self) -> float: ...


class EntropyBonus:
    """A policy's loss with the bonus of the next optimizer step.

    The bonus is a mean over the call's tokens whatever the loss's reduction, so that its coefficient means the same for all.
    """

    def __init__(self, config: EntropySettings, loss: Loss | Mixture) -> None:
        self._policy = loss
        self._fixed = config.entropy_coefficient
        self._control: AdaptiveEntropy | None = None
        if config.entropy_target is not None:
            self._control = AdaptiveEntropy(
                config.entropy_target,
                coefficient=config.entropy_coefficient,
                step=config.entropy_step,
                highest=config.entropy_highest,
            )
        _ = self.loss  # raises where the policy's loss has a bonus already

    @property
    def coefficient(self) -> float:
        """Of the next step's bonus."""
        return self._fixed if self._control is None else self._control.applied

    @property
    def loss(self) -> Loss | Mixture:
        """The loss of the next step; with a target, the bonus is there also while its coefficient is 0, to be measured."""
        if self._control is None and not self._fixed:
            return self._policy
        bonus = get_loss("entropy_bonus", coefficient=1.0, reduction="token-mean")
        return self._policy + self.coefficient * bonus

    def stepped(self, output: ForwardBackwardOutput) -> dict[str, float]:
        """Take note of a step's entropy. Returns the coefficient that the step had, as a metric; {} without a bonus."""
        if self._control is None and not self._fixed:
            return {}
        metrics = {"entropy_coefficient": self.coefficient}
        if self._control is not None:
            self._control = self._control.after(output.metrics[MEASURED])
        return metrics

    def kept(self, rollouts: Any) -> Any:
        """What a checkpoint keeps, as JSON values: the control beside the rollouts sampled ahead."""
        return rollouts if self._control is None else {"rollouts": rollouts, "entropy": self._control.state()}

    def restored(self, kept: Any) -> Any:
        """Continue from what `kept` returned; returns the rollouts."""
        if self._control is None or kept is None:
            return kept
        self._control = self._control.restored(kept["entropy"])
        return kept["rollouts"]
