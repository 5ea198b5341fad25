"""Wrong arguments of public calls: the error names the likeliest argument, also where another library has a word of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from types import FunctionType
from typing import Any, TypeVar

from .errors import UnknownArgument, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

#: Words of other libraries, and ours for the same, where a call has one of them.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "betas": ("beta1", "beta2"),
    "epsilon": ("eps", "clip_low", "clip_high"),
    "adam_beta1": ("beta1",),
    "adam_beta2": ("beta2",),
    "wd": ("weight_decay",),
    "max_grad_norm": ("grad_clip_norm",),
    "clip_grad_norm": ("grad_clip_norm",),
    "gradient_clipping": ("grad_clip_norm",),
    "max_new_tokens": ("max_tokens",),
    "max_length": ("max_tokens", "max_context_length"),
    "n": ("num_samples",),
    "num_return_sequences": ("num_samples",),
    "best_of": ("num_samples",),
    "stop_sequences": ("stop",),
    "stop_strings": ("stop",),
    "stop_token_ids": ("stop",),
    "eos_token_id": ("stop",),
    "do_sample": ("temperature",),
    "params": ("sampling_params", "adam_params"),
    "lora_rank": ("rank",),
    "r": ("rank",),
    "model": ("base_model",),
    "model_name": ("base_model",),
    "target_modules": ("lora_targets",),
    "loss": ("loss_fn",),
    "loss_config": ("loss_fn_config",),
    "config": ("loss_fn_config",),
    "datums": ("data",),
    "batch": ("data",),
    "labels": ("target_tokens", "loss_fn_inputs"),
    "input_ids": ("tokens", "model_input"),
    "loss_mask": ("weights",),
    "mask": ("weights",),
    "path": ("model_path",),
    "output_dir": ("checkpoint_dir",),
    "beta": ("kl_coefficient",),
    "kl_coef": ("kl_coefficient",),
    "kl_beta": ("kl_coefficient",),
    "cliprange": ("clip_low", "clip_high"),
    "clip_eps": ("clip_low", "clip_high"),
    "clip_range": ("clip_low", "clip_high"),
    "epsilon_low": ("clip_low",),
    "epsilon_high": ("clip_high",),
}
#: Arguments that hold others: the class, and its arguments.
HOLDERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "adam_params": ("AdamParams", ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")),
    "sampling_params": ("SamplingParams", ("max_tokens", "seed", "stop", "temperature", "top_k", "top_p")),
}


def explained(function: F) -> F:
    """The function; a call with arguments that it does not take raises UnknownArgument, with the likeliest ones."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except TypeError as error:
            inside = error.__traceback__ is None or error.__traceback__.tb_next is not None
            if inside or (why := _why(function, given, named)) is None:
                raise
        raise UnknownArgument(why)

    return call  # type: ignore[return-value]


def explained_constructor(cls: C) -> C:
    """The class, whose constructor is `explained`."""
    cls.__init__ = explained(cls.__init__)
    return cls


def explained_class(cls: C) -> C:
    """The class, whose constructor and public methods are `explained`."""
    for name, method in list(vars(cls).items()):
        is_public = name == "__init__" or not name.startswith("_")
        if is_public and isinstance(method, FunctionType) and not inspect.iscoroutinefunction(method):
            setattr(cls, name, explained(method))
    return cls


def _why(function: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments of a call; None where nothing is."""
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")
    known = [one for one in signature.parameters if one != "self"]
    takes = f"{name} takes {', '.join(known) or 'no arguments'}."
    unknown = [word for word in named if word not in known]
    if unknown:
        return " ".join(
            [f"{name} has no argument {word!r}.{meant(word, known) or _where(word, known)}" for word in unknown]
            + [takes]
        )
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        places = [
            one for one in signature.parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        by_name = [one for one in known if signature.parameters[one].kind is inspect.Parameter.KEYWORD_ONLY]
        if len(given) > len(places) and by_name:
            extra = given[len(places)]
            return f"{name} takes {by_name[0]} and the like by name: {by_name[0]}={extra!r:.40}. {takes}"
        return f"{name}: {error}. {takes}"
    return None


def meant(word: str, known: Collection[str]) -> str:
    """` Did you mean 'learning_rate'?` for a word that another library has for a known one, or that is close to one; else ""."""
    ours = [one for one in SYNONYMS.get(word, ()) if one in known]
    return f" Did you mean {' and '.join(map(repr, ours))}?" if ours else did_you_mean(word, known)


def _where(word: str, known: Collection[str]) -> str:
    """Which argument holds what a word asks for, in a sentence; "" where none does."""
    for argument, (kind, words) in HOLDERS.items():
        close = f"'{word}'" if word in words else meant(word, words)
        if argument in known and close:
            own = close.split("'")[1]
            return f" It belongs to {argument}={kind}({own}=...)."
    return f" A setting of the loss stands in loss_fn_config={{{word!r}: ...}}." if "loss_fn_config" in known else ""
