"""Names that settings of recipes choose between, and the types of values that files and flags can write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

#: The value of one setting of a loss or a task, as TOML and the command line can write it.
Setting = bool | int | float | str
#: Where rows come from, as `read_rows` takes it; a Path is converted to text.
Source = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
#: The dtype of matrix products.
Precision = Literal["float32", "bfloat16"]
#: constant; linear and cosine fall to 0 at the last step, cosine_with_min_lr to a minimum; inverse_sqrt falls as
#: 1/sqrt(step) after the warmup; warmup_stable_decay is constant, and falls over the last steps. transformers' names.
Schedule = Literal["constant", "linear", "cosine", "cosine_with_min_lr", "inverse_sqrt", "warmup_stable_decay"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
#: scrambled: the right answer with its words in another order. another: the right answer to another question.
WrongAnswer = Literal["scrambled", "another"]
#: Truncated answers: kept, without a gradient, or with DAPO's penalty.
Overlong = Literal["keep", "mask", "soft"]
#: Advantages by name; `rollouts/collector.py` computes them.
ADVANTAGES = (
    "group",
    "centred",
    "rloo",
    "batch_scaled",
    "maxrl",
    "gpg",
    "opo",
    "pass_at_k",
    "reinforce_plus_plus",
    "gigpo",
)
#: Those of single turns.
OF_TURNS = ("gigpo",)
#: Those that compare answers to different problems, so that one answer per problem teaches something too.
OVER_THE_BATCH = ("reinforce_plus_plus",)
#: The teacher that is the student before the first step.
SELF = "self"
#: Seconds that scoring an answer may take in a confined process.
SECONDS = 10.0
#: What an export writes: the LoRA adapter alone, or a whole model, and the dtype of that one's weights.
ExportForm = Literal["adapter", "merged"]
ExportDtype = Literal["float32", "float16", "bfloat16"]
