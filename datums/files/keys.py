"""What each key of a row means in its format: read, refused because it says what cannot be done, or noted as unread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..builders.notes import note_heeded, note_unread
from ..chat.messages import FLAGS
from ..checks.numbers import is_finite
from ..errors import DataFileError
from .formats import FORMATS

#: Further inputs per token that a row of tokens may have.
PER_TOKEN = ("advantages", "logprobs", "sampling_logprobs", "ref_logprobs", "old_values", "returns")
#: Masks over a row's tokens, unshifted: 1 for a token that may be learned. All of them together decide.
MASKS = (
    *("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "assistant_tokens_mask"),
    *("response_mask", "train_mask"),
)
#: Keys that say where the documents of a packed row begin; see `documents`.
LENGTHS = ("seq_lengths", "sequence_lengths", "seqlens", "document_lengths")
ENDS = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k")
NUMBERS = ("segment_ids", "document_ids", "doc_ids", "sequence_ids", "sequence_id", "seq_idx", "packing_ids")
PACKING = ("position_ids", *LENGTHS, *ENDS, *NUMBERS)

_TOKENS = (
    "tokens",
    "weights",
    "labels",
    "attention_mask",
    *MASKS,
    *PACKING,
    *PER_TOKEN,
)
_IDS = ("input_ids", *_TOKENS[1:])
#: The keys that are read of each format, besides `weight`.
READ: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "tools"),
    "preference pair": ("prompt", "chosen", "rejected", "tools"),
    "labelled completion": ("prompt", "completion", "label", "tools"),
    "prompt and completion": ("prompt", "completion", "tools"),
    "tokens and weights": _TOKENS,
    "input ids and labels": _IDS,
    "input ids and loss mask": _IDS,
    "input ids and completion mask": _IDS,
    "input ids and assistant masks": _IDS,
}
SYSTEM = ("system", "system_prompt")
_BY_TOKEN = "it counts tokens, but this row's text becomes tokens only here. Give 'input_ids' with it, without the text"
_BY_ROW = "write 'weight': a number by which the row is learned, 0 for not at all"
_MEDIA = "lossbook reads text alone; leave such rows out"
_SYSTEM = "make it the first message: {'role': 'system', 'content': ...}"
_TEMPLATE = "options of the chat template hold for a whole run; leave it out, or split the data"
#: Keys that say what cannot be done in any format, and what to do instead.
REFUSED = {
    **dict.fromkeys(("sample_weight", "loss_weight", "loss_scale"), _BY_ROW),
    **dict.fromkeys(
        ("image", "images", "audio", "audios", "video", "videos", "pixel_values", "input_features"), _MEDIA
    ),
    "prompt_mask": "give 'completion_mask' or 'loss_mask': 1 for the tokens that are learned",
    "target_tokens": "give 'labels', unshifted: lossbook shifts them",
}
#: Keys that say what cannot be done for a row of texts or messages.
REFUSED_WITH_TEXT = {
    **dict.fromkeys((*MASKS, "weights"), _BY_TOKEN),
    **dict.fromkeys(SYSTEM, _SYSTEM),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "documents"), _TEMPLATE),
    "functions": "rename it to 'tools'; each is {'type': 'function', 'function': {...}}",
}


def check_keys(row: Mapping[str, Any], kind: str) -> None:
    """Refuse keys that ask for something unsupported, and note keys that nothing reads. Null and empty values are
    ignored.

    kind: the row's format. Raises DataFileError, naming the key.
    """
    read = READ[kind]
    refused = REFUSED if "attention_mask" in read else {**REFUSED, **REFUSED_WITH_TEXT}
    for key, value in row.items():
        if (
            key in read
            or key == "weight"
            or (key in FLAGS and isinstance(value, bool))
            or value is None
            or (isinstance(value, str | list | dict) and not value)
        ):
            continue
        if key in refused:
            raise DataFileError(f"{key!r} is not read beside {_beside(kind)}: {refused[key]}")
        note_unread(repr(key))
    said = row.get({"messages": "messages", "preference pair": "chosen"}.get(kind, "completion"))
    if "tools" in read and row.get("tools") and isinstance(said, str):
        raise DataFileError(
            "'tools' is not read beside texts: only a chat template renders tools. Give messages instead"
        )


def check_prompt_keys(row: Mapping[str, Any]) -> None:
    """As `check_keys`, for a row of a prompt that is answered: only keys that a reward function cannot read are refused.

    Raises DataFileError, naming the key.
    """
    refused = {key: advice for key, advice in REFUSED.items() if advice == _MEDIA}
    refused |= {"tools": "only a chat template renders tools, and here it gets none", **dict.fromkeys(SYSTEM, _SYSTEM)}
    for key, advice in refused.items():
        if row.get(key) not in (None, [], {}, ""):
            raise DataFileError(f"{key!r} is not read beside 'prompt': {advice}")
    if row.get("weight") not in (None, 1) or any(row.get(key) is False for key in FLAGS):
        key = "weight" if row.get("weight") not in (None, 1) else next(key for key in FLAGS if row.get(key) is False)
        raise DataFileError(f"{key!r} is not read beside 'prompt': answers to it are rewarded; leave out rows to skip")


def row_weight(row: Mapping[str, Any], kind: str) -> float:
    """The row's `weight`, which multiplies all its tokens' weights; 1 by default, 0 if a flag of `FLAGS` is false.

    Raises DataFileError for another value, and for one other than 0 and 1 where a loss compares whole answers.
    """
    weight = _given_weight(row)
    if kind in ("preference pair", "labelled completion") and weight not in (0, 1):
        raise DataFileError(
            f"'weight' is {weight:g}, but losses compare the whole answers of a {kind}, so its weight can only be 0 or 1"
        )
    flags = [key for key in FLAGS if isinstance(row.get(key), bool)]
    for key in flags:
        note_heeded(repr(key))
    return weight if all(row[key] for key in flags) else 0.0


def _given_weight(row: Mapping[str, Any]) -> float:
    weight = row.get("weight")
    if weight is None:
        return 1.0
    if not is_finite(weight):
        raise DataFileError(f"'weight' is {weight!r}; the weight of a row is a finite number, such as 0, 1 or 0.5")
    note_heeded("'weight'")
    return float(weight)


def _beside(kind: str) -> str:
    return " and ".join(map(repr, FORMATS[kind]))
