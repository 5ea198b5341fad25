"""Settings of what a run measures, keeps and sends: evaluations, checkpoints, samples, trackers."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, model_validator

from .choices import TrackerName
from .groups import MOST, given, setting

#: Held-out metrics that early stopping can follow, the default of a recipe first: whether more is better.
FOLLOWED = {
    "held_out_accuracy": True,
    "held_out_recall_at_1": True,
    "held_out_nll": False,
    "held_out_forward_kl": False,
    "held_out_reverse_kl": False,
    "held_out_score": True,
    "held_out_margin": True,
    "held_out_reward_accuracy": True,
    "held_out_reward_margin": True,
    "held_out_recall_at_10": True,
    "held_out_mrr": True,
    "held_out_kl": False,
}


class RecordSettings(BaseModel):
    """What a run measures, keeps and sends besides its steps."""

    eval_every: int = setting(
        "Evaluation", 0, "steps between evaluations; 0: only before and after training", ge=0, le=MOST
    )
    early_stopping_patience: int | None = setting(
        "Evaluation",
        None,
        "end after as many evaluations without a better held-out metric; the best is kept",
        ge=1,
        le=MOST,
    )
    early_stopping_metric: str | None = setting(
        "Evaluation", None, "that metric, such as held_out_margin; None: the first of the recipe's page"
    )
    sample_prompts: tuple[str, ...] = setting(
        "Evaluation", (), "prompts answered during training, written to samples.jsonl"
    )
    sample_every: int = setting("Evaluation", 0, "steps between these answers; 0: only before and after", ge=0, le=MOST)
    sample_tokens: int = setting("Evaluation", 64, "most tokens in such an answer", ge=1, le=MOST)
    save_every: int = setting("Output", 0, "steps between checkpoints; 0: only one, at the end", ge=0, le=MOST)
    keep_checkpoints: int | None = setting(
        "Output", None, "keep this many of the newest, and the best with early stopping; None: all", ge=1, le=MOST
    )
    log_to: tuple[TrackerName, ...] = setting("Output", (), "trackers that receive the metrics, besides metrics.jsonl")
    tracker_project: str | None = setting(
        "Output",
        None,
        "project of wandb and trackio, experiment of mlflow; None: the tracker's own variable, or lossbook",
    )
    run_name: str | None = setting("Output", None, "the run's name in the trackers; None: that of its folder")

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out data to evaluate on."""
        return True

    @model_validator(mode="after")
    def _stops_early(self) -> Self:
        if self.early_stopping_patience is None:
            if self.early_stopping_metric is not None:
                raise ValueError("early_stopping_metric is for --early-stopping-patience only")
            return self
        if not self.eval_every:
            raise ValueError("early_stopping_patience counts evaluations: give --eval-every too")
        if not self.is_held_out:
            raise ValueError("early_stopping_patience follows a held-out metric, and nothing is held out")
        if self.early_stopping_metric is not None and self.early_stopping_metric not in FOLLOWED:
            raise ValueError(f"early_stopping_metric is one of {', '.join(FOLLOWED)}")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_many(self) -> Self:
        if self.keep_checkpoints is not None and not self.save_every and self.early_stopping_patience is None:
            raise ValueError("keep_checkpoints is for runs that save more than one: give --save-every too")
        return self

    @model_validator(mode="after")
    def _samples_have_prompts(self) -> Self:
        if not self.sample_prompts and (useless := given(self, "sample_every", "sample_tokens")):
            raise ValueError(f"{useless[0]} is for --sample-prompts only")
        return self

    @model_validator(mode="after")
    def _trackers_are_named(self) -> Self:
        if not self.log_to and (useless := given(self, "tracker_project", "run_name")):
            raise ValueError(f"{useless[0]} is for --log-to only")
        if self.tracker_project is not None and set(self.log_to) == {"tensorboard"}:
            raise ValueError("tensorboard has no projects: leave tracker_project out")
        for name in ("tracker_project", "run_name"):
            value = getattr(self, name)
            if value is not None and (
                not value.strip(" .") or "/" in value or "\\" in value or not value.isprintable()
            ):
                raise ValueError(f"{name} is a name on one line, without slashes, not {value!r}")
        return self
