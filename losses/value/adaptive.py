"""A coefficient of the entropy bonus that follows the policy's entropy. Its state lies outside the loss, which has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...datums.errors import LossConfigError, NonFiniteLossInput


@dataclass(frozen=True)
class AdaptiveEntropy:
    """How strong an entropy bonus is from one optimizer step to the next. He et al. 2025 (Skywork-OR1), arXiv:2505.22312.

        control = AdaptiveEntropy(target=0.2)
        for batch in batches:
            loss = get_loss("grpo") + control.applied * get_loss("entropy_bonus", coefficient=1.0, reduction="token-mean")
            output = training.forward_backward(batch, loss).result()
            control = control.after(output.metrics["entropy_bonus/entropy"])

    target: nats per token. A step whose mean entropy is at or below it raises the coefficient by `step`, any other lowers it
    by as much; it stays within [lowest, highest]. coefficient: the one at the start, and after each step the next.
    entropy: nats per token, of the step before; None before the first.

    A control never changes: `after` returns the next. `state` and `restored` are for a checkpoint. Defaults are TRL's.
    Raises LossConfigError for numbers that cannot be.
    """

    target: float
    coefficient: float = 0.0
    step: float = 0.005
    lowest: float = 0.0
    highest: float = 1.0
    entropy: float | None = None

    def __post_init__(self) -> None:
        for name in ("target", "step", "lowest", "highest"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise LossConfigError(f"AdaptiveEntropy: {name}={value!r} must be a finite number, 0 or more")
        if not self.step:
            raise LossConfigError("AdaptiveEntropy: with step=0 the coefficient never changes")
        if not self.lowest <= self.coefficient <= self.highest:
            raise LossConfigError(
                f"AdaptiveEntropy: coefficient={self.coefficient!r} must lie within [lowest, highest] = [{self.lowest:g}, "
                f"{self.highest:g}]"
            )

    @property
    def applied(self) -> float:
        """The coefficient of the bonus in the next step: 0 while the entropy is above the target, or not yet known."""
        return self.coefficient if self.entropy is not None and self.entropy <= self.target else 0.0

    def after(self, entropy: float) -> AdaptiveEntropy:
        """The control after a step whose mean entropy, in nats per token, was this. Raises NonFiniteLossInput for NaN."""
        if not math.isfinite(entropy):
            raise NonFiniteLossInput(f"AdaptiveEntropy: the entropy is {entropy}")
        moved = self.coefficient + (self.step if entropy <= self.target else -self.step)
        return replace(self, coefficient=min(max(moved, self.lowest), self.highest), entropy=float(entropy))

    def state(self) -> dict[str, float | None]:
        """What changes from step to step, as JSON values that keep every bit."""
        return {"coefficient": self.coefficient, "entropy": self.entropy}

    def restored(self, state: Mapping[str, float | None]) -> AdaptiveEntropy:
        """The control with what `state` returned."""
        return replace(self, coefficient=state["coefficient"], entropy=state["entropy"])
