"""NaN and infinity where the weight is 0, for functions that see every position: there they are 0, anywhere else an error.

What a loss over packed tensors sees is made so in `batch/`, by the same rule (`batch.positions.harmless`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.checks.screening import is_of_candidates
from ...datums.errors import NonFiniteLossInput
from ...datums.types import Datum, TensorData
from ..batch.outputs import not_finite
from ..batch.positions import harmless, target_shape


def harmless_datums(datums: Sequence[Datum], name: str) -> list[Datum]:
    """The datums, with NaN and infinity replaced by 0 where the weight is 0.

    Raises NonFiniteLossInput, naming datum, key and position, where the weight is not 0.
    """
    return [_harmless_datum(datum, f"datum {i} of {len(datums)}", name) for i, datum in enumerate(datums)]


def harmless_outputs(
    tensors: Sequence[Tensor], datums: Sequence[Datum], numbers: Sequence[int], kind: str, name: str
) -> list[Tensor]:
    """Each datum's output `kind`, with 0 for NaN and infinity where its weight is 0; they have no gradient there.

    numbers: the datums' indices in the call. Raises NonFiniteLossInput where the weight is not 0. Without weights nothing is
    known of what the function reads.
    """
    results: list[Tensor] = []
    for tensor, datum, number in zip(tensors, datums, numbers, strict=True):
        weights = _weights(datum)
        if weights is not None and kind not in ("embeddings", "projection") and not bool(torch.isfinite(tensor).all()):
            tensor = harmless(tensor, weights.to(tensor.device))
            if (place := _place(tensor)) is not None:
                raise not_finite(name, kind, number, place[0], float(tensor[place].detach()))
        results.append(tensor)
    return results


def _harmless_datum(datum: Datum, which: str, name: str) -> Datum:
    weights, changed = _weights(datum), {}
    for key, given in datum.loss_fn_inputs.items():
        if given.dtype != "float32" or np.isfinite(given.to_numpy()).all():
            continue
        values = given.to_torch()
        if weights is not None and key != "weights" and (not values.ndim or len(values) == len(weights)):
            values = harmless(values, weights)
        changed[key] = TensorData.from_torch(values)
        if is_of_candidates(key, datum.loss_fn_inputs):
            values = torch.where(values == -torch.inf, 0, values)
        if (place := _place(values)) is not None:
            where = f" at position {place[0]}" if place else ""
            advice = "" if weights is None or key == "weights" else ", where the weight is not 0"
            raise NonFiniteLossInput(f"{name}: {key} of {which} is {float(values[place])}{where}{advice}")
    return Datum(datum.model_input, {**datum.loss_fn_inputs, **changed}) if changed else datum


def _weights(datum: Datum) -> Tensor | None:
    """The weights in the shape of the targets, or one per position; None without any, or where they do not fit."""
    given, shape = datum.loss_fn_inputs.get("weights"), target_shape(datum)
    if given is None:
        return None
    weights = given.to_torch()
    if weights.numel() == torch.Size(shape).numel():
        return weights.reshape(shape)
    return weights if tuple(weights.shape) == shape[:1] else None


def _place(values: Tensor) -> tuple[int, ...] | None:
    """Where the first number is that is not finite."""
    wrong = ~torch.isfinite(values)
    return tuple(wrong.nonzero()[0].tolist()) if bool(wrong.any()) else None
