"""The flags of `lossbook serve`: the server's settings, each with its group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, create_model

from ....integrations.serve.settings import ServeSettings
from ..groups import Group, setting
from .keys import KEYS_VARIABLE

_GROUPS: dict[Group, tuple[str, ...]] = {
    "Server": ("host", "port", "keys", "hosts", "insecure"),
    "Model": ("models", "device", "dtype", "base_weights", "stable_reinforce"),
    "Memory": ("tokens_per_micro_batch", "workers", "models_in_memory", "idle_seconds"),
    "Output": ("root", "database"),
}
_GROUP_OF: dict[str, Group] = {name: group for group, names in _GROUPS.items() for name in names}


def _fields() -> dict[str, Any]:
    """A field for each of the server's settings; its limits, which are many, are one flag with names and numbers."""
    fields: dict[str, Any] = {}
    for name, field in ServeSettings.model_fields.items():
        if name == "limits":
            shown = "what a request may ask for, by name: --limits datums 1024 samples 64"
            fields[name] = (dict[str, float], setting("Advanced", {}, shown))
            continue
        if name == "models":  # a default with names in it would be flags of those names
            shown = (
                "base models that clients may ask for, by name: a folder, .gguf file, hub id or tiny; by default tiny"
            )
            fields[name] = (dict[str, str], setting("Model", {}, shown))
            continue
        shown = f"{field.description}" + (f"; ${KEYS_VARIABLE} too" if name == "keys" else "")
        default = setting(_GROUP_OF.get(name, "Advanced"), field.default, shown)
        default.metadata = field.metadata
        fields[name] = (field.annotation, default)
        if name == "keys":
            help = "a file with a key on each line, instead of --keys"
            fields["keys_file"] = (Path | None, setting("Server", None, help))
    return fields


#: Settings of the command; each field is a flag.
ServeConfig: Any = create_model(
    "ServeConfig",
    __config__=ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True),
    __module__=__name__,
    **_fields(),
)
