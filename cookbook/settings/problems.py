"""Settings of the problems of reinforcement learning."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from .choices import SECONDS, Setting
from .groups import MOST, given, setting


class ProblemSettings(BaseModel):
    """The source of the problems: a part of a recipe's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    task: str | None = setting("Data", None, "a reasoning-gym task to train on")
    task_config: dict[str, Setting] = setting("Data", {}, "the task's settings: --task-config max_words 5")
    data: str | None = setting(
        "Data",
        None,
        "rows of prompt and answer, instead of task: .jsonl, .parquet, a glob pattern, or datasets:NAME:SPLIT",
    )
    eval_data: str | None = setting("Data", None, "held-out data, in the same forms")
    environment: str | None = setting("Data", None, "guess_number or module:Class, instead of task")
    environment_config: dict[str, Setting] = setting("Data", {}, "the environment's settings")
    reward: str | None = setting(
        "Rollouts", None, "math_verify or module:function; None: the task's own verifier, math_verify for data"
    )
    task_size: int = setting("Data", 512, "number of problems of a task or environment to train on", ge=1, le=MOST)
    confine_rewards: bool = setting(
        "Rollouts", False, "run your reward function in a confined process (docs/recipes/rl.md); verifiers always are"
    )
    reward_seconds: float = setting(
        "Rollouts", SECONDS, "most seconds to score an answer, in a confined process; then it scores 0", gt=0
    )
    held_out: int = setting(
        "Data", 50, "number of problems held out; of data without eval_data, its last rows", ge=0, le=MOST
    )

    @model_validator(mode="after")
    def _one_source(self) -> ProblemSettings:
        if sum(source is not None for source in (self.task, self.data, self.environment)) != 1:
            raise ValueError("choose one of --task NAME, --data FILE and --environment NAME")
        if self.environment is not None and self.reward is not None:
            raise ValueError("an environment gives its own rewards: --reward is for --task and --data")
        if self.data is not None and given(self, "task_size"):
            raise ValueError("task_size is for --task and --environment only: all rows of data are trained on")
        if self.eval_data is not None and given(self, "held_out"):
            raise ValueError("choose one of eval_data, another file, and held_out, rows of this one")
        for name, source in (("task_config", "task"), ("eval_data", "data"), ("environment_config", "environment")):
            if getattr(self, name) and getattr(self, source) is None:
                raise ValueError(f"{name} is for --{source} only")
        return self

    @model_validator(mode="after")
    def _confined(self) -> ProblemSettings:
        is_own = self.reward is not None and ":" in self.reward
        if self.confine_rewards and not is_own:
            raise ValueError(
                "confine_rewards is for --reward module:function: verifiers and math_verify always are, environments cannot be"
            )
        is_free = self.environment is not None or (is_own and not self.confine_rewards)
        if self.reward_seconds != SECONDS and is_free:
            raise ValueError(
                "reward_seconds is for what runs in a confined process, which can be ended: a task's verifier, math_verify, and "
                "with --confine-rewards --reward module:function"
            )
        return self
