"""`setting`: one field of a recipe's settings, with the group under which the help lists its flag."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

#: The groups of flags, in the order of the help.
Group = Literal[
    "Server",
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


def setting(
    group: Group, default: Any, description: str, *, metavar: str = "", aliases: tuple[str, ...] = (), **limits: Any
) -> Any:
    """A field with its group and its line of help.

    default: `...` where it must be given. metavar: what the help shows in the value's place. aliases: other names of the flag.
    limits: as `pydantic.Field` has them.
    """
    shown = {"group": group, "metavar": metavar, "aliases": [*aliases]}
    return Field(default, description=description, json_schema_extra=shown, **limits)


def given(settings: BaseModel, *names: str) -> list[str]:
    """Those of these settings that are not at their defaults: written configurations name all settings, also those nobody gave."""
    return [name for name in names if getattr(settings, name) != type(settings).model_fields[name].default]
