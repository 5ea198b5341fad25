"""What all JSON requests share: how they are read, and the fields that several have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ....datums.errors import did_you_mean
from ..refusals import Counter, Failed, Refused
from ..settings import Limits
from .body import read_json

R = TypeVar("R", bound="Request")

#: The largest `user_metadata`, in bytes of JSON.
METADATA_BYTES = 65536


def _checked_id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError("no id of this server: those are letters, digits, and - _ : . in between")
    return text


def _checked_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("a checkpoint's name is 1 to 128 of the characters A-Z a-z 0-9 . _ -, and begins with no dot")
    return text


def _checked_text(text: str) -> str:
    if len(text) > 1024 or _CONTROL.search(text):
        raise ValueError("give at most 1024 characters, and no control characters")
    return text


_ID, _NAME = re.compile(r"[!-~]{1,256}"), re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: An id that the server gave: of a session, model, sampler or future. Whether there is one of that name is another question.
Id = Annotated[str, AfterValidator(_checked_id)]
#: A number that a client counts up.
Number = Annotated[int, Field(ge=0, lt=2**63)]
#: The name of a checkpoint, which becomes a part of its path.
CheckpointName = Annotated[str, AfterValidator(_checked_name)]
#: A short text without control characters.
Text = Annotated[str, AfterValidator(_checked_text)]
Seconds = Annotated[int, Field(ge=0, lt=2**63)]


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > METADATA_BYTES:
        raise ValueError(f"has more than {METADATA_BYTES} bytes of JSON")
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
TextMetadata = Annotated[dict[str, str], AfterValidator(_small)]


class Fields(BaseModel):
    """A part of a request. Unknown fields are ignored, so that a newer client is understood; types are strict."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Choices(BaseModel):
    """A part of a request whose fields change numbers. An unknown field is refused unless it asks for nothing (false, 0, null)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def check_extra(self, where: str) -> None:
        """Raise Failed for an unknown field that asks for something."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, False, 0, "") and value != [] and value != {}:
                raise Failed(
                    f"{where} has the field {ascii(name)[:80]}, which this server does not know."
                    f"{did_you_mean(name[:80], type(self).model_fields)}",
                    "user",
                )


class Request(Fields):
    """The body of a request.

    NUMBERED  the fields of an operation's scope and number, and its counter
    STATUS    how a body is answered that has a field missing, or one of another type
    """

    NUMBERED: ClassVar[tuple[tuple[str, str, Counter], ...]] = ()
    STATUS: ClassVar[int] = 422

    @classmethod
    def check_size(cls, fields: Mapping[str, Any], limits: Limits) -> None:
        """Raise Refused where there are too many parts, before anything is made of them."""

    def check(self, limits: Limits) -> None:
        """Raise Refused, with the limit's name, where the request asks for more than the server gives."""


def parsed(model: type[R], body: bytes | Mapping[str, Any], limits: Limits) -> R:
    """A request of JSON, as bytes or as `read_json` gave it.

    Raises Refused: 400 for what is no JSON or over a limit, 422 for a field that is missing or of another type (400 for one of
    `retrieve_future`), in one line that names it. `used` says which number the refused operation had, where that could be read.
    """
    fields = read_json(body, limits) if isinstance(body, bytes) else body
    try:
        model.check_size(fields, limits)
        request = model.model_validate(fields)
        request.check(limits)
    except ValidationError as error:
        raise Refused(model.STATUS, _one_line(error), used=_used(model, fields)) from None
    except Refused as refused:
        refused.used = refused.used or _used(model, fields)
        raise
    return request


def most(name: str, what: str, count: int, limits: Limits) -> None:
    """Raise Refused where `count` is above the limit of this name."""
    limit = getattr(limits, name)
    if count > limit:
        raise Refused(400, f"{what} is {count}, and the limit {name} is {limit}")


def _used(model: type[Request], fields: Mapping[str, Any]) -> tuple[str, Counter, int] | None:
    for scope, number, counter in model.NUMBERED:
        values = fields.get(scope), fields.get(number)
        if isinstance(values[0], str) and type(values[1]) is int and 0 < len(values[0]) <= 256 and values[1] >= 0:
            return values[0], counter, values[1]
    return None


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:200] or "the body"
    reason = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "missing" or not first["loc"] else f", not {_short(first['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{ascii(place)[1:-1]}: {reason[:200]}{given}{more}"


def _short(value: Any) -> str:
    text = ascii(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
