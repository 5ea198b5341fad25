"""What a line of sequences.jsonl, and loss.json, hold. They are checked against this when a run's folder is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, StrictFloat, StrictInt, StrictStr, model_validator

from ..run.names import LOSS
from ..run.records import checked, read_json

#: A number in a column; None for one that is missing or was not finite.
Number = StrictFloat | StrictInt | None
#: The text of a target, its weight, logprob and gradient.
Candidate = tuple[StrictStr, Number, Number, Number]


class TokenColumns(BaseModel):
    """Columns of [N + 1] entries each: the tokens, and by name their numbers."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[Number]]  # type: ignore[reportIncompatibleVariableOverride]  # as pydantic asks for it
    text: list[StrictStr]
    id: list[StrictInt]


class RecordedSequence(BaseModel):
    """A sequence of a step, the `datum`-th (from 0) of `of` in its call."""

    step: StrictInt
    datum: NonNegativeInt
    of: StrictInt
    side: StrictStr = ""
    losses: dict[StrictStr, tuple[Number, StrictStr]]
    tokens: TokenColumns
    cut: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    embedding_gradient: Number = None
    candidates: list[list[Candidate] | None] | None = None

    @model_validator(mode="after")
    def _one_entry_per_token(self) -> Self:
        columns = [self.tokens.id, *(self.tokens.__pydantic_extra__ or {}).values()]
        if self.candidates is not None:
            columns.append(self.candidates)
        if any(len(column) != len(self.tokens.text) for column in columns):
            raise ValueError(f"a column does not have one entry for each of the {len(self.tokens.text)} tokens")
        if not self.losses or self.of <= self.datum:
            raise ValueError("it has no loss, or is no datum of its call")
        return self


class RefusedSequence(BaseModel):
    """A step of which nothing was recorded, and why."""

    step: StrictInt
    refused: StrictStr


class RecordedTensor(BaseModel):
    """A row of a card's table of inputs."""

    name: StrictStr
    shape: StrictStr
    unit: StrictStr
    meaning: StrictStr


class RecordedSetting(BaseModel):
    """A row of a card's table of settings."""

    name: StrictStr
    type: StrictStr
    default: Any
    bounds: StrictStr


class RecordedAxes(BaseModel):
    """How a loss uses ratios."""

    ratio: StrictStr
    clip: StrictStr
    kl: StrictStr


class RecordedCard(BaseModel):
    """The card of a part of the loss, as `LossCard.as_dict` gives it, and the part's factor."""

    name: StrictStr
    formula: StrictStr
    description: StrictStr
    per: StrictStr
    reduction: StrictStr
    axes: RecordedAxes
    source: StrictStr
    defined_in: StrictStr
    outputs: dict[StrictStr, RecordedTensor]
    inputs: dict[StrictStr, RecordedTensor]
    settings: dict[StrictStr, RecordedSetting]
    differs: dict[StrictStr, StrictStr]
    factor: StrictFloat | StrictInt = 1.0


class RecordedLoss(BaseModel):
    """The content of loss.json."""

    loss: StrictStr
    parts: list[RecordedCard]


def read_loss(folder: str | Path) -> dict[str, Any]:
    """The content of loss.json; {} if there is none. Raises DataFileError for a damaged file."""
    path = Path(folder) / LOSS
    recorded = read_json(path)
    return {} if recorded is None else checked(RecordedLoss, recorded, str(path)).model_dump()
