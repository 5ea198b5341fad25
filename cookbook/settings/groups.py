"""`setting`: one field of a recipe's settings, with the group under which the help lists its flag."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

#: The groups of flags, in the order of the help.
Group = Literal[
    "Model",
    "Data",
    "Loss",
    "Rollouts",
    "Optimizer",
    "Schedule",
    "Memory",
    "Evaluation",
    "Output",
    "Resume",
    "Advanced",
]
GROUPS: tuple[str, ...] = get_args(Group)


#: More steps, rows, tokens than any run has: a count beyond was mistyped.
MOST = 10**9


def setting(group: Group, default: Any, description: str, **limits: Any) -> Any:
    """A field with its group and its line of help. default: `...` where it must be given. limits: as `pydantic.Field` has them."""
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


def given(settings: BaseModel, *names: str) -> list[str]:
    """Those of these settings that are not at their defaults: written configurations name all settings, also those nobody gave."""
    return [name for name in names if getattr(settings, name) != type(settings).model_fields[name].default]


def group_of(field: FieldInfo) -> str:
    """The group of a field; "Advanced" for one that was declared without."""
    extra = field.json_schema_extra
    return str(extra.get("group", "Advanced")) if isinstance(extra, dict) else "Advanced"
