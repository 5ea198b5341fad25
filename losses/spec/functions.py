"""What users give as a loss, as a function whose signature says what it reads."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch.nn import Module

from ...datums.errors import LossContractError
from .spec import is_batch_style


def as_function(given: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a module as a function with the signature of its `forward`, with the module as its `module`; return
    functions unchanged.
    """
    if not isinstance(given, Module):
        return given
    module = given

    @functools.wraps(module.forward)
    def call(*arguments: Any, **settings: Any) -> Any:
        return module(*arguments, **settings)

    call.__name__ = call.__qualname__ = type(module).__name__
    call.module = module  # type: ignore[attr-defined]
    return call


def batch_style(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under the parameter names of the hosted APIs' signature."""
    if is_batch_style(function):
        return function
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or (len(needed) < 2 and not takes_any and len(list(parameters)) < 2):
        raise LossContractError(
            f"a custom loss takes two arguments, fn(data, logprobs_list), but {getattr(function, '__name__', function)!r} "
            f"takes ({', '.join(p.name for p in parameters)}). Close over anything else, for instance with functools.partial"
        )

    def call(data: Any, logprobs_list: Any) -> Any:
        return function(data, logprobs_list)

    return call


def check_ids(*names: str) -> None:
    """Raise LossContractError for a name that is no id."""
    for name in names:
        if callable(name):
            raise LossContractError(
                'write @register_loss("an_id", per="token"): the decorator takes the id of the loss'
            )
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_./:-]*", name):
            raise LossContractError(f"{name!r} is not a usable id: letters, digits and _ . / : - only")


def one_word(name: str, word: str, value: Any, old_word: str, old_value: Any) -> Any:
    """The value of a word that has an older spelling."""
    if value is not None and old_value is not None:
        raise LossContractError(f"{name}: give {word} alone; {old_word} is its older spelling")
    return old_value if value is None else value
