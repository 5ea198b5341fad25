"""How a model runs, in words."""

from __future__ import annotations

from ..model.model import LoadedModel
from ..model.weights.narrow import casts_once
from ..packing.hidden import Batching, attention_name, packing_way, shares_prefixes, supports_packing
from ..packing.probes import verdict
from .plan import NO_CACHE, PLANS, Plan, plan_of, plans_for
from .static.graph import VERDICT

#: How sequences run, by batching.
WAYS = {"packed": "packs", "padded": "pads", "single": "runs one sequence at a time"}
#: How attention runs over a packed row, where it is not block by block.
CALLS = {"varlen": ", one attention call per layer", "flex": ", one call of flex_attention per layer"}


def how_it_runs(model: LoadedModel, batching: Batching) -> str:
    """What was chosen: packing or padding, shared prefixes, cutting and the cache, and why not a better way. Tries what was not tried.

    "pads (packs: no, layer 0 has attention sinks); shares no prefixes; cuts what is not read; samples with the model's own cache"
    """
    layers = (
        *(["4-bit base weights (nf4)"] if model.base_weights == "4bit" else []),
        *_fused(model),
        *(["casts its linear weights once per call"] if casts_once(model) else []),
    )
    if model.kind != "decoder":
        return "; ".join([WAYS[batching], "computes every token", *layers])
    cuts = verdict(model, "cut")
    parts = (
        f"{WAYS[batching]}{CALLS.get(attention_name(model, batching), '')}{_why_not_packed(model, batching)}",
        "shares prefixes" if shares_prefixes(model, batching) else "shares no prefixes",
        "cuts what is not read" if cuts else f"computes every token ({cuts.reason})",
        _samples(model, plan_of(model)),
        *layers,
    )
    return "; ".join(parts)


def _fused(model: LoadedModel) -> tuple[str, ...]:
    """What runs in fused kernels, or on a GPU why nothing does; nothing on a CPU."""
    if model.fused:
        return (f"fuses {', '.join(f'{count} {kind}' for kind, count in model.fused.items())}",)
    return tuple(f"fuses nothing ({each.reason})" for name, each in model.verdicts.items() if name == "fused")


def cache_of(model: LoadedModel) -> str | None:
    """The cache that samples are decoded with, or "none"; None while no probe has tried it."""
    names = [name for name in plans_for(model) if name in model.verdicts]
    holding = [name for name in names if model.verdicts[name]]
    if holding and PLANS[holding[0]].fixed and model.verdicts.get(VERDICT):
        return f"{holding[0]}, replayed as a graph"
    return holding[0] if holding else "none" if len(names) == len(plans_for(model)) else None


def _why_not_packed(model: LoadedModel, batching: Batching) -> str:
    if batching == "packed":
        return ""
    if packing_way(model) is None:
        return f" (packs: no, {verdict(model, 'blocks').reason})"
    return " (as asked)" if supports_packing(model) else " (packs on a GPU)"


def _samples(model: LoadedModel, plan: Plan) -> str:
    if plan == NO_CACHE:
        return "samples without a cache"
    if plan.fixed:
        graph = model.verdicts.get(VERDICT)
        recorded = "" if graph is None else ", replayed as a graph" if graph else f" (no graph: {graph.reason})"
        return f"samples with a cache of fixed size{recorded}"
    cache = "a cache that keeps each prompt once" if plan.share else "the model's own cache"
    return f"samples with {cache}{'' if plan.pads else ', prompts of one length together'}"
