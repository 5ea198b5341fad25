"""Probes of a model: may its sequences be cut, padded, packed, and may they share prefixes? Each is tried once.

A probe compares the hidden states of short sequences in a layout with those of each sequence alone. Windows and chunks are
shortened meanwhile, so that the sequences reach beyond them. A rotation that depends on the length is looked at up to the
model's limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.lengths import SHORT_WINDOW, chooses_tokens, rotation_looks_ahead, short_windows, switch_length
from ..model.model import LoadedModel
from ..model.verdict import Verdict
from . import layouts
from .layers import repeated_parts
from .layouts import Laid, Way

#: Tokens that two of the sequences share: more than a short window, and few, since a probe costs what its tokens cost.
SHARED = SHORT_WINDOW + 2
#: Layouts in which probes try a model.
WAYS: dict[str, Way] = {
    "padded": layouts.padded,
    "restarting": layouts.restarting,
    "blocks": layouts.blocks,
    "sharing": layouts.sharing,
}
#: Parts that carry a state along the row, by a word in the name of their class.
STATES = ("Mamba", "Recurrent", "Rwkv", "DeltaNet", "Delta", "Conv", "LSTM", "Lightning", "LinearAttention", "Rglru")


def verdict(model: LoadedModel, probe: str) -> Verdict:
    """What the probe "cut" (a sequence may be cut after the last token that is read) or one of WAYS sees; tried once."""
    if probe in model.verdicts:
        return model.verdicts[probe]
    with trying(model):
        return model.tried(probe, lambda: _cut(model) if probe == "cut" else _tried(model, probe))


def failed_probes(model: LoadedModel) -> dict[str, str]:
    """Why the model does not run in a way, for each probe that was tried and failed."""
    return {name: each.reason for name, each in model.verdicts.items() if not each}


def differ(ours: Tensor, theirs: Tensor) -> tuple[bool, float]:
    """Whether two [T, d] of hidden states or logits differ by more than rounding, and by how much of their scale.

    In float32 (and float64: norms and routers compute in float32 there too) the largest difference counts. In narrower
    types a single number says little: there the root mean square of a token's differences counts, relative to its numbers'.
    """
    wide = torch.promote_types(ours.dtype, torch.float32) == ours.dtype
    ours, theirs = ours.double(), theirs.double()
    if ours.shape != theirs.shape:
        return True, float("inf")
    off = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0)
    if wide:
        return not bool(off <= 64 * torch.finfo(torch.float32).eps), float(off)
    relative = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-6)
    return not bool(relative.quantile(0.9) <= 8 * torch.finfo(torch.bfloat16).eps), float(relative.max())


def probe_sequences(model: LoadedModel, shared: int = SHARED) -> list[np.ndarray]:
    """Three sequences on the shorter side of a switch: two share `shared` tokens, and the longest does not come first."""
    tokens = (np.arange(shared + 4) * 7 + 3) % model.vocab_size
    sequences = [tokens[5:8], np.concatenate([tokens[:shared], tokens[:2]]), tokens]
    longest = min(model.max_length or len(tokens), switch_length(model) or len(tokens))
    return [sequence[:longest] for sequence in sequences]


def crossing_sequences(model: LoadedModel, limit: int = 512) -> list[np.ndarray]:
    """A sequence on each side of the model's switch, or none where it has no switch below `limit` tokens."""
    switch = switch_length(model)
    if switch is None or not 8 <= switch <= limit or (model.max_length or 1 << 62) < switch + 4:
        return []
    return [(np.arange(length) * 5 + 1) % model.vocab_size for length in (switch + 4, switch - 3)]


def alone(model: LoadedModel, sequence: np.ndarray) -> Laid:
    """A sequence in a row of its own, as a user would hand it to transformers."""
    return layouts.padded(model, [sequence])


@contextmanager
def trying(model: LoadedModel) -> Iterator[None]:
    """Inside, a probe may run the model: in eval mode, without gradients and warnings, with short windows."""
    was_training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(), short_windows(model):
            warnings.simplefilter("ignore")
            yield
    finally:
        model.module.train(was_training)


def _cut(model: LoadedModel) -> Verdict:
    if model.kind != "decoder":
        return Verdict(False, "every token of an encoder sees those behind it")
    if reason := _depends_on_length(model):
        return Verdict(False, reason)
    return _compared([alone(model, sequence).run(model) for sequence in probe_sequences(model)[1:]])


def _depends_on_length(model: LoadedModel) -> str | None:
    """Why a row's length changes what its first tokens give, which rows of a few tokens would not show; None where it does not."""
    if module := rotation_looks_ahead(model):
        return f"{module} rotates a position in another way in a longer row"
    return chooses_tokens(model)


def _compared(apart: Sequence[Tensor]) -> Verdict:
    """Whether the tokens that the last two sequences begin with are the same in both, whatever follows."""
    one, other = (hidden[:SHARED] for hidden in apart[-2:])
    length = min(len(one), len(other))
    wrong, off = differ(one[:length], other[:length])
    return Verdict(not wrong, f"tokens change with those behind them, by {off:.2g}" if wrong else "", off)


def _tried(model: LoadedModel, name: str) -> Verdict:
    is_decoder = model.kind == "decoder"
    if not is_decoder and name != "padded":
        return Verdict(False, "an encoder's tokens see both ways; only a decoder is packed")
    if is_decoder and (reason := _depends_on_length(model)):
        return Verdict(False, reason)
    if name in ("blocks", "sharing") and (reason := _other_than_attention(model)):
        return Verdict(False, reason)
    sequences = probe_sequences(model)
    try:
        laid = layouts.sharing(model, sequences, shortest=SHARED) if name == "sharing" else WAYS[name](model, sequences)
        together = laid.run(model)
        apart = [alone(model, sequence).run(model) for sequence in sequences]
    except NotImplementedError as error:  # of attention block by block, which names the layer
        return Verdict(False, str(error))
    except Exception as error:  # an architecture may refuse the arguments with any error
        return Verdict(False, f"{type(model.module).__name__} does not take such rows: {' '.join(str(error).split())}")
    if is_decoder:
        model.verdicts.setdefault("cut", _compared(apart))  # seen on the way
    wrong, off = differ(together, torch.cat(apart))
    if not wrong:
        return Verdict(True, off=off)
    return Verdict(False, f"{_first_layer(model, laid, sequences)} off by {off:.2g} of its scale", off)


def _other_than_attention(model: LoadedModel) -> str:
    """The first layer that is more than attention, from the configuration; "" where it names none."""
    config = model.config.get_text_config()
    for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in ("full_attention", "sliding_attention"):
            state = "carries a state along the row" if "linear" in kind or "conv" in kind or "mamba" in kind else ""
            return f"layer {index} ({kind}) {state or 'has an attention of its own'}"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "its attention is in chunks of the row"
    return ""


def _first_layer(model: LoadedModel, laid: Laid, sequences: Sequence[np.ndarray]) -> str:
    """The first layer that gives other numbers in the layout than alone, and what kind of layer it is."""
    layers = repeated_parts(model)
    together = _outputs_of(layers, model, laid)
    apart = [_outputs_of(layers, model, alone(model, sequence)) for sequence in sequences]
    for index, layer in enumerate(layers):
        if index not in together or any(index not in each for each in apart):
            continue
        ours, theirs = laid.read(together[index]), torch.cat([each[index] for each in apart])
        if differ(ours, theirs)[0]:
            return f"layer {index} ({_kind_of(model, layer, index)}"
    return f"{type(model.module).__name__} ({model.config.model_type}) is"


def _outputs_of(layers: Sequence[nn.Module], model: LoadedModel, laid: Laid) -> dict[int, Tensor]:
    outputs: dict[int, Tensor] = {}

    def keep(index: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple | list) else output
        outputs[index] = hidden.reshape(-1, hidden.shape[-1])

    hooks = [
        layer.register_forward_hook(lambda _module, _given, output, index=index: keep(index, output))
        for index, layer in enumerate(layers)
    ]
    try:
        laid.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _kind_of(model: LoadedModel, layer: nn.Module, index: int) -> str:
    """`kind) carries a state along the row;` or `kind) is`, to be followed by how far off it is."""
    names = [type(part).__name__ for part in layer.modules()]
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    kind = kinds[index] if kinds and index < len(kinds) else type(layer).__name__
    has_state = any(word in name for name in names for word in STATES)
    return f"{kind}) carries a state along the row; it is" if has_state else f"{kind}) is"
