"""Functions with the hosted APIs' signature, fn(data, logprobs_list), on tensors: the one kind of loss that needs datums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....datums.types import Datum, ModelInput
from ...spec.settings import WEIGHTS_KEY
from ...stats import Stat
from ..harmless import harmless_datums
from ..hosted import call_batch_style
from .host import to_host
from .names import Part
from .packing import Reader


def call_on_datums(part: Part, reader: Reader, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Stat]]:
    """What the function says of one datum per row, padding included, which has weight 0.

    A datum carries `weights` where there is a mask, `target_tokens` where there are labels or they were given, and every
    other input by its name; `sampling_logprobs` also as `logprobs`, as Tinker calls them. Its tokens are `input_ids`, or
    zeros without them.
    """
    datums = harmless_datums(datums_of(reader), part.name)
    (kind,) = part.spec.outputs
    output = outputs[kind]
    rows = list(output) if kind == "embeddings" else list(output.split(reader.lengths.tolist()))
    return call_batch_style(part.spec, part.settings, datums, {kind: rows}, range(len(datums)))


def datums_of(reader: Reader) -> list[Datum]:
    """One datum per row."""
    call, lengths = reader.call, reader.lengths.tolist()
    flat = {key: values for key, (level, values) in call.inputs.items() if level == "position"}
    flat |= {} if call.labels is None else {"target_tokens": call.labels.clamp(min=0)}
    here = to_host(flat)
    carried: dict[str, list[Any]] = {key: list(values.split(lengths)) for key, values in here.items()}
    carried |= {key: list(values) for key, values in reader.per_row.items()}
    if (weights := reader.weights.get(WEIGHTS_KEY)) is not None:
        carried[WEIGHTS_KEY] = list(weights.split(lengths))
    if "sampling_logprobs" in carried:
        carried.setdefault("logprobs", carried["sampling_logprobs"])
    tokens = carried.pop(
        "input_ids", [torch.zeros(max(length, 1), dtype=torch.int64, device="cpu") for length in lengths]
    )
    return [
        Datum(ModelInput.from_ints(tokens[i]), {key: rows[i] for key, rows in carried.items()})
        for i in range(call.layout.rows)
    ]
