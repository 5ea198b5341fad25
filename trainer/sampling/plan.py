"""How a model's continuations are computed: with which cache, and which prompts together. Probes decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..device import path_of
from ..model.lengths import SHORT_WINDOW, switch_length
from ..model.model import LoadedModel
from ..model.verdict import Verdict
from ..packing.hidden import Batching, hidden_states, packing_way
from ..packing.probes import differ, trying, verdict
from .blocks import Rows
from .continuations import Continuations


@dataclass(frozen=True)
class Plan:
    """share: prompts are kept once for all their samples. cached: with a cache. pads: prompts of several lengths together.

    fixed: in buffers of fixed size, for devices where launches cost more than arithmetic.
    """

    share: bool
    cached: bool
    pads: bool
    fixed: bool = False


#: The plans that probes try, the best first; the last one needs no probe.
PLANS = {
    "fixed buffers": Plan(True, True, True, True),
    "shared prompts": Plan(True, True, True),
    "shared prompts of one length": Plan(True, True, False),
    "cache": Plan(False, True, True),
    "cache, prompts of one length": Plan(False, True, False),
}
NO_CACHE = Plan(False, False, True)


def plan_of(model: LoadedModel, *, fixed: bool = True) -> Plan:
    """The first plan whose hidden states equal those without a cache; each is tried once per model. fixed: whether
    buffers of fixed size may be used.
    """
    names = [name for name in plans_for(model) if fixed or not PLANS[name].fixed]
    return next((PLANS[name] for name in names if plan_verdict(model, name)), NO_CACHE)


def plans_for(model: LoadedModel) -> list[str]:
    """The names of the plans that serve on a model's device, the best first."""
    on_gpu = path_of(model.device) != "cpu"
    return [name for name, plan in PLANS.items() if on_gpu or not plan.fixed]


def plan_verdict(model: LoadedModel, name: str) -> Verdict:
    """What the probe of one of PLANS sees."""
    if name in model.verdicts:
        return model.verdicts[name]
    with trying(model):
        return model.tried(name, lambda: _tried(model, PLANS[name]))


def can_share_prompts(model: LoadedModel) -> bool:
    """Whether prompts may be kept once for all their samples."""
    return plan_of(model).share


def _tried(model: LoadedModel, plan: Plan) -> Verdict:
    """Two prompts with two rows each, of which one is dropped after a token; across a switch that lies near."""
    if not (cuts := verdict(model, "cut")):  # what a cache holds of a token would depend on those behind it
        return Verdict(False, cuts.reason)
    switch = switch_length(model)
    if plan.pads and switch is not None:
        return Verdict(False, f"rows rotate in another way beyond {switch} tokens, so they have to get there together")
    tokens = [(token * 5 + 2) % model.vocab_size for token in range(1, 40)]
    length = switch - 1 if switch is not None and 8 <= switch <= len(tokens) - 6 else SHORT_WINDOW + 1
    prompts = [tokens[:length], tokens[3 : 3 + length - (3 if plan.pads else 0)]]
    try:
        seen, ours = [], []
        for slots in (1, 2) if plan.fixed else (None,):
            rows = _rows(model, prompts, plan, slots)
            texts = [prompts[row // 2] for row in range(4)]
            seen, ours = [*seen, *texts], [*ours, rows.read()]
            for step in range(2 if switch is None else 3):
                newest = tokens[step : step + len(texts)]
                ours.append(rows.extend(torch.tensor(newest, device=model.device)))
                texts = [[*text, token] for text, token in zip(texts, newest, strict=True)]
                seen += texts
                if step == 0:
                    texts = [texts[row] for row in rows.keep([0, 2, 3])]
        theirs = _without_cache(model, seen)
    except Exception as error:  # an architecture with another kind of state may fail with any error
        return Verdict(False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    wrong, off = differ(torch.cat(ours), theirs)
    return Verdict(not wrong, f"hidden states differ from those without a cache by {off:.2g}" if wrong else "", off)


def _rows(model: LoadedModel, prompts: Sequence[list[int]], plan: Plan, slots: int | None) -> Rows:
    if slots is None:
        return Continuations(model, prompts, 2, 4, share_prompts=plan.share)
    from .static.rows import StaticRows

    return StaticRows(model, prompts, 2, 4, slots=slots)


def _without_cache(model: LoadedModel, rows: Sequence[list[int]]) -> Tensor:
    """[rows, d]: the last hidden state of each row; a row that another one continues is read off that, unless a switch lies near."""
    whole = rows
    if switch_length(model) is None:
        whole = [row for row in rows if not any(row == other[: len(row)] != other for other in rows)]
    arrays = [np.asarray(row, dtype=np.int64) for row in whole]
    starts = np.cumsum([0, *map(len, whole)])
    owners = [next(i for i, other in enumerate(whole) if other[: len(row)] == row) for row in rows]
    last = torch.tensor([starts[owner] + len(row) - 1 for owner, row in zip(owners, rows, strict=True)])
    packed: Batching = "packed" if packing_way(model) is not None else "single"
    return hidden_states(model, arrays, packed if len(rows) > len(whole) else "single", last)
