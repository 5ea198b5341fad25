"""What is asked of a server, and what counts as the same number."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...datums.errors import ConfigError


class ConformSettings(BaseModel):
    """Settings of a check of a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(default="tiny", description="base model to train adapters of")
    rank: int = Field(default=8, ge=1, description="rank of the adapters")
    seed: int = Field(default=0, ge=0, description="of the data that is made up")
    examples: int = Field(default=4, ge=2, le=64, description="datums per call; samples per question grow with it")
    tokens: int = Field(default=12, ge=6, le=512, description="most tokens of a datum")
    vocabulary: int = Field(default=250, ge=32, description="token ids are drawn below this")
    tolerance: float = Field(
        default=0.005,
        gt=0,
        description="largest difference of two equal numbers, relative above 1; about 0.05 for bfloat16",
    )
    timeout: float = Field(default=60.0, gt=0, description="seconds that an answer may take")
    error_seconds: float = Field(default=15.0, gt=0, description="seconds within which a mistake must be refused")


def settings_of(**given: object) -> ConformSettings:
    """Settings from flags; those that are None take their default. Raises ConfigError naming the field."""
    try:
        return ConformSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{first['loc'][0]}={first.get('input')!r}: {first['msg']}") from None
