"""Hidden states of several sequences: as each alone would give, however they run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ModelError
from ..device import path_of
from ..model.lengths import by_side, cut_on_its_side
from ..model.model import LoadedModel
from ..transfer import to_device
from . import layouts
from .layouts import Laid, Way
from .micro_batches import lengths_read
from .paths import attention_path
from .probes import verdict

Batching = Literal["packed", "padded", "single"]

#: Ways of packing, the best first.
PACKED = ("sharing", "blocks", "restarting")


def hidden_states(
    model: LoadedModel,
    sequences: Sequence[Sequence[int] | np.ndarray],
    batching: Batching | None,
    rows: Tensor | None = None,
    beside: dict[str, Tensor] | None = None,
    forwards: int = 1,
    routes: Sequence[np.ndarray] | None = None,
    layers: Sequence[int] = (),
) -> Tensor:
    """[tokens of all sequences, d]: last hidden states, sequence after sequence, without padding; or only those in `rows`.

        rows: on the CPU. beside: tensors on the CPU that go to the device with the tokens; they are replaced by those there.

        "padded" (or None): one row per sequence in one forward. "packed": one row for all, in the way that the model's probes
        allow; an encoder is padded. "single": one sequence per forward. Sequences on different sides of a model's switch
        (`switch_length`) run apart. forwards: run so many at least, the others of one token each, which nothing reads; a sharded
    model
        waits in each layer for the other ranks'. routes: of each sequence, [length, layers, k], the experts that its tokens are sent
        to; sequences then share no prefix. layers: also the hidden states of these, beside the last ones: [tokens, (1 + L) d].
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    way = _way(model, batching, share=routes is None)

    def laid(group: Sequence[int]) -> Laid:
        together = way(model, [arrays[i] for i in group])
        return together if routes is None else together.sending([routes[i] for i in group])

    groups = _groups(model, batching, [len(array) for array in arrays])
    if len(groups) == 1 and forwards == 1:
        return laid(groups[0]).run(model, rows, beside, layers)
    parts: list[Tensor] = [torch.empty(0, device="cpu")] * len(arrays)
    for group in groups:
        together = laid(group).run(model, beside=beside if group is groups[0] else None, layers=layers)
        for i, part in zip(group, together.split([len(arrays[i]) for i in group]), strict=True):
            parts[i] = part
    hidden = torch.cat(parts)
    if forwards > len(groups):
        others = [way(model, [np.zeros(1, np.int64)]).run(model, layers=layers) for _ in range(forwards - len(groups))]
        hidden = torch.cat([hidden, *others])[: len(hidden)]  # which leads the gradient through them too
    return hidden if rows is None else hidden[to_device({"rows": rows}, model.device)["rows"]]


def forwards_of(model: LoadedModel, batching: Batching | None, lengths: Sequence[int]) -> int:
    """How many forwards sequences of these lengths take together."""
    return len(_groups(model, batching, lengths))


def _groups(model: LoadedModel, batching: Batching | None, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences that run in one forward."""
    return [[i] for i in range(len(lengths))] if batching == "single" else by_side(model, lengths)


def _way(model: LoadedModel, batching: Batching | None, *, share: bool) -> Way:
    if batching != "packed" or model.kind == "encoder":
        return layouts.padded
    name = packing_way(model)
    if name is None:
        raise _refused(model, "packed")
    if name == "restarting":
        return layouts.restarting
    # Dropout in a shared prefix would be the same for all its sequences.
    lay = layouts.sharing if name == "sharing" and share and not model.drops else layouts.blocks
    # The path was tried with autocast's products; outside of it, as in sampling, they are as wide as the weights.
    is_wide = model.compute_dtype is not None and not torch.is_autocast_enabled(model.device.type)
    return partial(lay, path="blocks" if is_wide else attention_path(model))


def packing_way(model: LoadedModel) -> str | None:
    """How the model's sequences are packed, one of PACKED; None where no way gives the numbers of each alone."""
    return next((name for name in PACKED if verdict(model, name)), None)


def supports_packing(model: LoadedModel) -> bool:
    """Whether attention block by block gives the hidden states of each sequence alone.

    False for encoders, layers that carry a state along the row (Mamba, convolutions), attention in chunks, soft-capped
    scores, attention sinks, and architectures that do not use transformers' attention functions.
    """
    return packing_way(model) in ("sharing", "blocks")


def attention_name(model: LoadedModel, batching: Batching | None) -> str:
    """How attention runs over packed rows, and elsewhere the name of transformers' attention function."""
    if batching == "packed" and supports_packing(model):
        return attention_path(model)
    return str(model.config._attn_implementation)


def shares_prefixes(model: LoadedModel, batching: Batching | None) -> bool:
    """Whether a prefix that several sequences begin with is computed once."""
    return batching == "packed" and not model.drops and packing_way(model) == "sharing"


def choose_batching(model: LoadedModel, asked: Batching | None) -> Batching:
    """How the model's sequences run: as asked, or in the best way whose probe holds.

    Raises ModelError where the way that was asked for gives other numbers than each sequence alone, with the layer; and for a
    decoder whose tokens see those behind them, which include the next token, that losses are about.
    """
    batching = _chosen(model, asked)
    cut = verdict(model, "cut")  # tried now, so that no call runs a probe in its midst; the others have mostly seen it
    if batching == "packed":
        attention_path(model)
    if model.kind == "decoder" and cut.off is not None and not cut:
        raise ModelError(
            f"{model.name} ({type(model.module).__name__}) cannot be trained on next tokens: its {cut.reason}, so it would be "
            "given the answers. Only decoders with causal attention are supported"
        )
    return batching


def _chosen(model: LoadedModel, asked: Batching | None) -> Batching:
    if asked is None:
        if _packing_pays(model):
            return "packed"
        return "padded" if verdict(model, "padded") else "single"
    holds = {
        "packed": lambda: packing_way(model) is not None,
        "padded": lambda: bool(verdict(model, "padded")),
        "single": lambda: True,
    }
    if not holds[asked]():
        raise _refused(model, asked)
    return asked


def _packing_pays(model: LoadedModel) -> bool:
    """Whether packing is the fastest way that gives each sequence its own numbers."""
    path = path_of(model.device)
    if not supports_packing(model):  # a mask over the whole row costs more than padding on a CPU
        return path != "cpu" and packing_way(model) is not None
    # On CUDA each block is a dozen launches in every layer, and padding none.
    return path != "cuda" or attention_path(model) != "blocks" or not verdict(model, "padded")


def lengths_computed(model: LoadedModel, lengths: np.ndarray, read: np.ndarray) -> np.ndarray:
    """For each sequence of `lengths` [N] tokens, how many to compute where only the first `read` [N] are read."""
    return cut_on_its_side(model, lengths, read) if verdict(model, "cut") else lengths


def trim_to_last_read(
    model: LoadedModel, sequences: Sequence[np.ndarray], active: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences cut as far as the model allows after the last position at which their masks ([length] bool each) are true.

    Also returns where, among the tokens that are left, the masks are true.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    computed = lengths_computed(model, lengths, lengths_read(lengths, np.concatenate(active))).tolist()
    trimmed = [sequence[:length] for sequence, length in zip(sequences, computed, strict=True)]
    return trimmed, np.flatnonzero(np.concatenate([mask[:n] for mask, n in zip(active, computed, strict=True)]))


def _refused(model: LoadedModel, asked: Batching) -> ModelError:
    probe = "padded" if asked == "padded" else "blocks"
    return ModelError(
        f"{model.name} ({model.config.model_type}) cannot run with batching={asked!r}: {verdict(model, probe).reason}. "
        "Leave batching out, and it runs in a way that gives each sequence its own numbers"
    )
