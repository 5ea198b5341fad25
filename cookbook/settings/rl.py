"""Settings of reinforcement learning."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from .base import RecipeConfig
from .choices import ADVANTAGES, OF_TURNS, OVER_THE_BATCH, Overlong
from .groups import MOST, given, setting
from .problems import ProblemSettings
from .sampler import SamplerSettings


class RLConfig(ProblemSettings, SamplerSettings, RecipeConfig):
    """Settings of the recipe; each field is a flag."""

    out: Path = setting("Output", Path("runs/rl"), "the run's folder: settings, metrics, checkpoints, adapter")
    loss: str = setting(
        "Loss",
        "grpo",
        "grpo, dapo, gspo-token, any policy loss (`lossbook losses list`) or module:function",
        aliases=("--rl-loss-method",),
    )
    learning_rate: float = setting("Optimizer", 1e-4, "the optimizer's learning rate after warmup", gt=0)
    steps: int = setting("Data", 100, "steps, each with rollouts of its own", ge=1, le=MOST)
    problems_per_step: int = setting("Data", 8, "problems per step", ge=1, le=MOST)
    group_size: int = setting("Rollouts", 8, "answers per problem", ge=1, le=MOST)
    max_tokens: int = setting("Rollouts", 64, "most tokens in an answer", ge=1, le=MOST)
    max_length: int | None = setting("Data", None, "an episode of this many tokens gets no further turn", ge=2, le=MOST)
    temperature: float = setting("Rollouts", 1.0, "sampling temperature; any other than 1 biases the logprobs", gt=0)
    allow_biased: bool = setting("Rollouts", False, "allow a temperature other than 1")
    advantages: str = setting("Loss", "group", f"advantages from rewards: {', '.join(ADVANTAGES)}")
    dynamic_sampling: int = setting(
        "Rollouts", 0, "how often to replace groups of equal rewards by new ones", ge=0, le=MOST
    )
    overlong: Overlong = setting(
        "Rollouts", "keep", "truncated answers: keep, mask (no gradient) or soft (DAPO's penalty)"
    )
    overlong_buffer: int | None = setting(
        "Rollouts", None, "tokens over which the soft penalty rises to 1; None: max_tokens/4", ge=1, le=MOST
    )
    minibatches: int = setting(
        "Rollouts", 1, "minibatches, each an optimizer step, that a step's rollouts are divided into", ge=1, le=MOST
    )
    passes: int = setting("Rollouts", 1, "passes over a step's rollouts", ge=1, le=MOST)
    kl_coefficient: float | None = setting("Loss", None, "coefficient of the KL to the weights at the start", ge=0)
    entropy_coefficient: float = setting(
        "Loss", 0.0, "coefficient of an entropy bonus; the one at the start, with --entropy-target", ge=0
    )
    entropy_target: float | None = setting(
        "Loss", None, "nats per token: a step below raises the bonus's coefficient, one above lowers it", gt=0
    )
    entropy_step: float = setting("Loss", 0.005, "by how much --entropy-target changes the coefficient", gt=0)
    entropy_highest: float = setting("Loss", 1.0, "the most that --entropy-target raises the coefficient to", gt=0)
    rollout_correction: str | None = setting(
        "Loss", None, "weights of trainer over sampler, or rejection: token_truncate, reject_mean_k3, ..."
    )
    off_policy_steps: int = setting("Rollouts", 0, "1: sample the next step's rollouts during training", ge=0, le=1)
    samples: int = setting("Rollouts", 4, "rollouts per step that samples.jsonl records", ge=0, le=MOST)

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out data to evaluate on."""
        return self.eval_data is not None or self.held_out > 0

    @model_validator(mode="after")
    def _possible(self) -> RLConfig:
        if self.temperature != 1 and not self.allow_biased:
            raise ValueError("a temperature other than 1 biases the logprobs; allow that with --allow-biased")
        if self.minibatches > self.problems_per_step * self.group_size:
            raise ValueError(f"{self.minibatches} minibatches are more than the rollouts of a step")
        if self.overlong != "soft" and self.overlong_buffer is not None:
            raise ValueError("overlong_buffer is for --overlong soft only")
        if self.allow_biased and self.temperature == 1:
            raise ValueError("allow_biased is for a --temperature other than 1")
        if self.environment is None and self.max_length is not None:
            raise ValueError("max_length is for an --environment of several turns: --max-tokens limits an answer")
        if self.advantages in OF_TURNS and self.environment is None:
            raise ValueError(f"advantages {self.advantages!r} compare turns, so they need an --environment of several")
        if self.entropy_target is None and (idle := given(self, "entropy_step", "entropy_highest")):
            raise ValueError(f"{idle[0]} is for an --entropy-target only: without one the coefficient is constant")
        if self.entropy_target is not None and self.entropy_coefficient > self.entropy_highest:
            raise ValueError(f"entropy_coefficient={self.entropy_coefficient:g} is above entropy_highest")
        if self.group_size == 1 and self.advantages in ADVANTAGES:
            self._check_single_answers()
        return self

    def _check_single_answers(self) -> None:
        """One answer per problem has no other to be compared with, unless advantages compare all answers of a step."""
        others = " or ".join(OVER_THE_BATCH)
        if self.advantages not in OVER_THE_BATCH:
            raise ValueError(
                f"with one answer per problem all advantages {self.advantages!r} are 0, so nothing would be learned: give "
                f"--group-size 2 or more, or --advantages {others}"
            )
        if self.problems_per_step == 1:
            raise ValueError("a step of one answer has nothing to compare it with: give --problems-per-step 2 or more")
        if self.dynamic_sampling:
            raise ValueError(
                "--dynamic-sampling replaces groups of equal rewards, and every group of one answer is such"
            )
