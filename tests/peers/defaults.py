"""The defaults of installed peers' configurations, read without making one (which looks for devices and hubs)."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import warnings
from typing import Any


def of_config(module: str, name: str) -> dict[str, Any]:
    """The fields of a dataclass with their defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    return {
        field.name: field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        for field in fields
    }


def of_function(function: Any) -> dict[str, Any]:
    """The arguments of a function or constructor that have a default."""
    made = function.__init__ if inspect.isclass(function) else function
    parameters = inspect.signature(made).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def of_grpo(module: str = "trl", name: str = "GRPOConfig") -> dict[str, Any]:
    """TRL's GRPOConfig (or a kin of it) as its trainer's attributes: the clip's distances from 1, and the rest as it is."""
    own = of_config(module, name)
    own["epsilon_low"] = own["epsilon"]
    own["epsilon_high"] = own["epsilon"] if own["epsilon_high"] is None else own["epsilon_high"]
    return own
