"""The registry: a loss is one decorated function, known by its id."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any, TypeVar, overload

from ..datums.errors import DuplicateLossError, LossbookError, LossContractError, UnknownLossError, nearest
from ..datums.extras import named_in, user_module
from ..datums.keywords import explained
from .ids import LossId, MixtureId, PresetId
from .loss.loss import AnyLoss, Loss, Mixture
from .spec.axes import Axes
from .spec.functions import as_function, batch_style, check_ids, one_word
from .spec.groups import Groups, Partners, Units, groups_of
from .spec.settings import own_names
from .spec.spec import Conflict, LossSpec, Per, is_batch_style, make_spec
from .spec.vocabulary import Vocabularies
from .trace.trace import TracedLoss

PLUGIN_GROUP = "lossbook.losses"

F = TypeVar("F", bound=Callable[..., Any])

_specs: dict[str, LossSpec] = {}
_aliases: dict[str, str] = {}
_plugin_errors: dict[str, str] = {}
_plugins_loaded = False
#: (id, config) to the loss that an id such as "trl:grpo" or "ppo+token_truncate" names, or None.
Resolver = Callable[[str, Mapping[str, Any]], Loss | Mixture | None]
_resolvers: list[Resolver] = []
#: Why no loss is offered under an id.
_reserved: dict[str, str] = {}


@explained
def register_loss(
    name: str,
    *,
    per: Per = "token",
    couples: str | None = None,
    reduction: str | None = None,
    source: str = "",
    required_if: Mapping[str, str] | None = None,
    groups: Groups | None = None,
    candidates: str | None = None,
    linear: bool = False,
    conflict: Conflict | None = None,
    vocabularies: Vocabularies = "same",
    output: str = "logprobs",
    aliases: Sequence[str] = (),
    axes: Axes | None = None,
    differs: Mapping[str, str] | None = None,
    laws: Mapping[str, Any] | None = None,
    units: Units | None = None,
    partners: Partners | None = None,
    claims: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Register a loss function, or a torch module by its `forward`, under an id. It is returned unchanged.

    Parameters of a module, or of a function's own, get gradients with each `forward_backward`; step them yourself.

    per: what one returned value is about: "token" [T], "datum" [N], "pair" [N/2], "group" [G], "batch" (a scalar).
    couples: what must be seen together; as `per` unless given. "group": datums with the same integer `group` (`seqs.groups`).
    reduction: the default; `reduction=` in its configuration overrides it.
    source: paper and equation.
    required_if: {input: setting}: an optional input that is needed whenever the setting is not zero.
    groups: (number of datums, config, packed inputs) -> `Grouping(members, values)`: which datums belong together, such as
        a query and its document, and how many values the loss returns. Needed where that is not one datum (or pair) and
        one value each.
    candidates: for a loss over K candidate tokens per position: the input [T, K] whose -inf marks a candidate as absent.
        logprobs are [T, K] then, weights are one per position, and the loss returns [T].
    linear: the loss is linear in logprobs, the only model output that it reads. The trainer can then compute their gradient
        before the forward. The conformance kit holds the loss to it.
    conflict: (settings) -> why they exclude each other or can do nothing together, or "". Asked whenever the loss is made.
    vocabularies: of a loss that reads `teacher_vocab_logprobs`: whether the teacher must have the student's tokens ("same"),
        may have others ("any"), or is given in the student's numbers: column v is the student's token v, -inf where the
        teacher has none such, and its other tokens follow ("renumbered").
    output: for fn(data, logprobs_list) only: "logprobs" or "embeddings", which outputs the second argument lists.
    aliases: other ids for the same loss.
    axes: ratio level, clip and KL, for its card. differs: {system: how that system's loss of this name differs}.
    laws: {law: settings}: laws of its family that it promises to keep; the conformance kit holds it to them.
    units, partners, claims: older words for the two halves of `groups` and for `laws`.

    Raises DuplicateLossError when the id is taken, LossContractError when the signature cannot be filled.
    """
    check_ids(name, *aliases)
    groups = one_word(name, "groups", groups, "units or partners", groups_of(units, partners))
    laws = one_word(name, "laws", laws, "claims", claims)
    declared: dict[str, Any] = {"per": per, "couples": couples, "reduction": reduction, "source": source}
    declared |= {"groups": groups, "candidates": candidates, "linear": linear, "conflict": conflict}
    declared["vocabularies"] = vocabularies
    declared["aliases"] = tuple(aliases)
    declared |= {"required_if": dict(required_if or {}), "differs": dict(differs or {}), "laws": dict(laws or {})}

    def register(function: F) -> F:
        _add(make_spec(as_function(function), name, output=output, axes=axes or Axes(), **declared))
        return function

    return register


def _add(spec: LossSpec) -> None:
    for name in (spec.name, *spec.aliases):
        _check_free(name)
    _specs[spec.name] = spec
    _aliases.update(dict.fromkeys(spec.aliases, spec.name))


def _check_free(name: str) -> None:
    if name in _reserved:
        raise DuplicateLossError(f"{name!r} is reserved: {_reserved[name]}")
    with suppress(UnknownLossError):
        if ":" in name and any(resolve(name, {}) for resolve in _resolvers):
            raise DuplicateLossError(f"{name!r} is another system's loss, a preset of lossbook: choose another id")
    taken = _specs.get(_aliases.get(name, name))
    if taken is not None:
        function = taken.function
        raise DuplicateLossError(
            f"{name!r} is registered already, by {function.__module__}.{getattr(function, '__qualname__', function)}. "
            f"Choose another id, or call unregister_loss({taken.name!r}) first, as when a notebook cell runs again"
        )


def unregister_loss(name: str) -> None:
    """Remove a loss and its aliases from the registry. Raises UnknownLossError if it is not registered."""
    spec = spec_of(name)
    del _specs[spec.name]
    for alias in spec.aliases:
        del _aliases[alias]


def spec_of(name: str) -> LossSpec:
    """What is known about a registered id or alias. Raises UnknownLossError with the likeliest id."""
    if not _is_known(name):
        _load_plugins()
    name = _aliases.get(name, name)
    if name in _specs:
        return _specs[name]
    if name in _reserved:
        raise UnknownLossError(f"{name!r}: {_reserved[name]}")
    module, colon, rest = name.partition(":")
    where = (
        f" A file is named without its ending: {module.removesuffix('.py')}:{rest}."
        if colon and module.endswith(".py")
        else f" There is no module {module!r} to import it from either, here or among the installed packages."
        if colon
        else ""
    )
    broken = "".join(f" Plug-in {plugin!r} failed to load: {why}." for plugin, why in _plugin_errors.items())
    raise UnknownLossError(
        f"no loss is registered as {name!r}.{where}{nearest(name, [*_specs, *_aliases])} `lossbook losses list`, or list_losses(), gives all "
        f"{len(_specs)}.{broken}"
    )


def _is_known(name: str) -> bool:
    return name in _specs or name in _aliases


def register_resolver(resolve: Resolver) -> Resolver:
    """Have `get_loss` call `resolve(id, config)` for ids that are not registered. It returns None for an id that it
    does not know.
    """
    _resolvers.append(resolve)
    return resolve


def reserve_ids(reasons: Mapping[str, str]) -> None:
    """Say why no loss is offered under these ids."""
    _reserved.update(reasons)


@overload
def get_loss(name: LossId | PresetId | Loss, **config: Any) -> Loss: ...
@overload
def get_loss(name: MixtureId | Mixture, **config: Any) -> Mixture: ...
@overload
def get_loss(name: AnyLoss, **config: Any) -> Loss | Mixture: ...
def get_loss(name: AnyLoss, **config: Any) -> Loss | Mixture:
    """A `Loss` from an id, a preset, "module:function", a registered or any loss function; config overrides its defaults.

    A preset is another system's loss, such as "trl:grpo" (`list_presets`); an id may end in a correction, such as
    "ppo+token_truncate" (`rollout_correction`).

    A function that was never registered is taken as fn(data, logprobs_list) when its first parameter is named `data`,
    else as a loss per token. Raises UnknownLossError, LossConfigError or LossContractError.
    """
    if isinstance(name, Mixture):
        if config:
            raise LossContractError("configure the parts of a mixture, not the mixture")
        return name
    if isinstance(name, Loss):
        if not config:
            return name
        given = {key: getattr(name.config, key) for key in name.config.model_fields_set}
        return Loss(name.spec, {**given, **own_names(name.spec.config, name.name, config)})
    if not isinstance(name, str):
        return Loss(spec_of_function(name), config)
    if not _is_known(name):
        _load_plugins()
    if not _is_known(name):
        for resolve in _resolvers:  # before any import: "tinker:ppo" must not load the SDK
            if (loss := resolve(name, config)) is not None:
                return loss
        if ":" in name and (function := _imported(name)) is not None:
            return Loss(spec_of_function(function), config)
    return Loss(spec_of(name), config)


def trace_report(settings: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, TracedLoss | str]:
    """Every registered loss under reduction "sum": its trace, or why it cannot be traced.

    settings: {loss: settings} for losses that need some.
    """
    report: dict[str, TracedLoss | str] = {}
    for name in list_losses():
        try:
            report[name] = Loss(spec_of(name), {"reduction": "sum", **(settings or {}).get(name, {})}).trace()
        except LossbookError as error:
            report[name] = str(error)
    return report


def spec_of_function(function: Callable[..., Any], *, output: str | None = None) -> LossSpec:
    """The spec of a registered function, or one made for a function that was never registered.

    output: given by callers that know the function to be fn(data, logprobs_list), whatever its parameters are called.
    """
    registered = next((spec for spec in _specs.values() if spec.made_of(function)), None)
    if registered is not None:
        return registered
    if not callable(function):
        raise LossContractError(f"a loss is an id or a function, not a {type(function).__name__}")
    name = getattr(function, "__name__", type(function).__name__).strip("<>")
    function = as_function(function)
    if output is None and not is_batch_style(function):
        return make_spec(function, name, per="token")
    renamed = batch_style(function)
    return make_spec(renamed, name, per="batch", output="logprobs" if output is None else output)


def is_registered(function: Any) -> bool:
    """Whether a function was decorated with `register_loss`."""
    return any(spec.made_of(function) for spec in _specs.values())


def functions_in(package: str) -> list[Callable[..., Any]]:
    """The registered functions of a package's modules."""
    return [
        spec.function
        for spec in _specs.values()
        if (getattr(spec.function, "__module__", None) or "").startswith(f"{package}.")
    ]


def list_losses() -> list[str]:
    """All registered ids, plug-ins included, sorted."""
    _load_plugins()
    return sorted(_specs)


def plugin_errors() -> dict[str, str]:
    """Plug-ins that failed to load, with the reason."""
    _load_plugins()
    return dict(_plugin_errors)


def _imported(path: str) -> Callable[..., Any] | None:
    """The function at "module:function", or None when there is no such module."""
    if (module := user_module(path)) is None:
        return None
    return _specs[path].function if path in _specs else named_in(module, path, UnknownLossError)


def _load_plugins() -> None:
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for entry in entry_points(group=PLUGIN_GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken plug-in is reported, never fatal
            _plugin_errors[entry.name] = f"{type(error).__name__}: {error}"
            warnings.warn(f"lossbook plug-in {entry.name!r} failed to load: {_plugin_errors[entry.name]}", stacklevel=3)
