"""Reward models: evaluating their scores, scoring answers, and exporting the scorer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...datums import disk
from ...datums.errors import LengthMismatchError, ModelError
from ...datums.files.rows import datum_from_row
from ...datums.types import Datum
from ...trainer import ServiceClient
from ...trainer.checkpoint.contents import contents_of
from ...trainer.checkpoint.folder import read_checkpoint
from ..run.runs import Run, find_checkpoint, writing_run
from .evaluation import accuracy_and_margin, sides
from .examples import PreferenceExample, flat

if TYPE_CHECKING:
    from ...trainer import TrainingClient

SCORER = "scorer"
#: Names of the head's weights in a checkpoint, and in transformers' models for sequence classification.
HEAD_WEIGHT, HEAD_BIAS, CLASSIFIER = "value_head.weight", "value_head.bias", "base_model.model.score.weight"


def values_as_they_are(values: Tensor) -> Tensor:
    """A loss whose value is not used: it makes the model return `values`."""
    return values


def scores(training: TrainingClient, datums: Sequence[Datum]) -> np.ndarray:
    """[N] float64: each answer's score, the value at its datum's last position of nonzero weight."""
    outputs = training.forward(datums, values_as_they_are).result().loss_fn_outputs
    last = [int(np.flatnonzero(datum.loss_fn_inputs["weights"].to_numpy())[-1]) for datum in datums]
    return np.array([float(out["values"].to_numpy()[i]) for out, i in zip(outputs, last, strict=True)])


@dataclass(frozen=True)
class HeldOutScores:
    """Held-out pairs; datum good[i] is the chosen and bad[i] the rejected answer of pair i.

    measure gives  held_out_accuracy   share of pairs whose chosen answer has the higher score; ties count half
                   held_out_margin     mean difference, nats
                   held_out_score, held_out_score_spread    mean and standard deviation of all scores
    """

    datums: list[Datum]
    good: np.ndarray
    bad: np.ndarray

    @classmethod
    def begin(cls, examples: Sequence[PreferenceExample]) -> HeldOutScores | None:
        """None without held-out data."""
        return cls(flat(examples), *sides(examples)) if examples else None

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Evaluate the current weights; one forward."""
        values = scores(training, self.datums)
        accuracy, margin = accuracy_and_margin(values[self.good], values[self.bad])
        return {
            "held_out_accuracy": accuracy,
            "held_out_margin": margin,
            "held_out_score": float(values.mean()),
            "held_out_score_spread": float(values.std()),
        }


class Scorer:
    """A trained reward model.

    path: the folder of a run of `lossbook train reward`, or one of its checkpoints. Raises RunError, CheckpointError, and
    ModelError for a checkpoint without a scalar head.
    """

    def __init__(self, path: str | Path, *, device: str | None = None) -> None:
        checkpoint = find_checkpoint(path)
        contents = contents_of(read_checkpoint(checkpoint, names=[]))
        if not contents.value_head:
            raise ModelError(
                f"{checkpoint} has no scalar head, so it is not a reward model; `lossbook train reward` makes one"
            )
        service = ServiceClient(device=device, base_weights=contents.base_weights or "full")
        self._training = service.create_training_client_from_state(str(checkpoint))

    def score(self, prompts: Sequence[Any], answers: Sequence[Any]) -> list[float]:
        """A score for each prompt with its answer, both texts or both lists of messages; higher is better.

        Only differences between answers to one prompt are meaningful.
        """
        if len(prompts) != len(answers):
            raise LengthMismatchError(
                f"{len(prompts)} prompts and {len(answers)} answers: each prompt needs one answer"
            )
        if not prompts:
            return []
        tokenizer = self._training.get_tokenizer()
        pairs = zip(prompts, answers, strict=True)
        rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
        return scores(self._training, [datum_from_row(row, tokenizer) for row in rows]).tolist()


def export_scorer(run: Run) -> str:
    """Write `scorer/` beside the run's adapter, with adapter and head for transformers; returns a line about it.

    Load it with `PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), folder)`.
    That model scores at its last input token. lossbook scores at the position that predicts the answer's last token, so give
    that model the prompt and the answer without the end of the turn. The head's bias, equal for all answers, is left out.
    """
    from safetensors.torch import load_file, save_file

    checkpoint = find_checkpoint(run.path)
    if not (run.adapter / "adapter_config.json").exists():
        return f"scorer  {checkpoint}: lossbook.cookbook.preferences.reward_models.Scorer reads it"
    head = read_checkpoint(checkpoint, names=["weights"]).tensors["weights"]
    config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config.update(task_type="SEQ_CLS", modules_to_save=["score"])
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    with writing_run(run.path / SCORER), disk.new_folder(run.path / SCORER) as folder:
        with disk.writing(path := folder / "adapter_model.safetensors"):
            save_file({**tensors, CLASSIFIER: head[HEAD_WEIGHT]}, path)
        disk.write_file(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    return f"scorer  {run.path / SCORER} (loads with peft for AutoModelForSequenceClassification)"
