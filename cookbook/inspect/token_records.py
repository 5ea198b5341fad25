"""The loss microscope's record: a few sequences at a few steps of a run, each token with what the loss made of it.

A line of sequences.jsonl is one sequence, its N positions after the first token, which is nobody's target:

    {"step": 40, "datum": 2, "of": 8, "side": "",
     "losses": {"ppo": [-0.31, "token"]},                       value, and what it is of
     "tokens": {"text": [...N + 1], "id": [...], "weight": [null, ...], "logprob": [...], "gradient": [...], ...},
     "cut": [0, 0]}                                             tokens left out before and behind
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datums.errors import DataFileError
from ...datums.files.show import token_texts
from ...datums.types import Datum, as_datum
from ...losses.cards.card import card_of
from ...losses.loss.mixture import Mixture
from ...losses.registry import get_loss
from ..run.names import LOSS, SEQUENCES
from ..run.runs import read_rows
from .token_losses import Examined, examine, partners

if TYPE_CHECKING:
    from ...trainer.responses import ForwardBackwardOutput
    from ..run.runs import Run

__all__ = ["Examined", "examine", "read_loss", "read_sequences", "record_loss", "record_sequences"]

#: Longer sequences are cut to these many tokens, so that files stay small: a few of a prompt's end, then what is learned.
LONGEST, OF_THE_PROMPT = 400, 60
#: Of K targets at a position, how many are written.
CANDIDATES = 5
#: Significant digits, more than colours or a reader can tell apart.
DIGITS = 5


def record_sequences(
    run: Run,
    step: int,
    loss: Any,
    batch: Sequence[Any],
    output: ForwardBackwardOutput,
    tokenizer: Any,
    *,
    count: int = 2,
) -> None:
    """Append `count` sequences of a call (pairs and other partners whole) to the run's sequences.jsonl.

    loss, batch: those of the call, all of its data; output: what it returned. The sequences lie evenly over the batch,
    or, where they have advantages, from the worst to the best.
    The loss is called once or twice more than it was by the trainer, which a function that counts its calls will notice.
    One that cannot be examined gives a line that says why, for a run must not end because it is looked at.
    """
    try:
        lines = _lines(get_loss(loss), [as_datum(datum) for datum in batch], output, tokenizer, count)
    except Exception as error:  # a user's function, called once more than it may expect, can raise anything
        lines = [{"refused": f"{type(error).__name__}: {error}"}]
    for line in lines:
        run.append(SEQUENCES, {"step": step, **line})


def record_loss(run: Run, loss: Any) -> None:
    """Write the cards of a loss's parts with their settings as trained, once a run: also of a loss that is in no registry."""
    loss = get_loss(loss)
    parts = loss.parts if isinstance(loss, Mixture) else [(1.0, loss)]
    cards = [{"factor": factor, **card_of(part, metrics=False).as_dict()} for factor, part in parts]
    run.write(LOSS, json.dumps({"loss": repr(loss), "parts": cards}, indent=1))


def read_loss(folder: str | Path) -> dict[str, Any]:
    """What `record_loss` wrote; {} where there is none. Raises DataFileError for a damaged file."""
    path = Path(folder) / LOSS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["loss"], [(part["name"], part["axes"]["ratio"], part["settings"]) for part in found["parts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return found


def read_sequences(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's sequences.jsonl; [] when there is no file. Raises DataFileError naming a row that is none."""
    rows = read_rows(Path(folder) / SEQUENCES)
    for number, row in enumerate(rows, start=1):
        try:
            lengths = {len(row["tokens"][name]) for name in ("id", *row["tokens"])} if "refused" not in row else {0}
            is_whole = len(lengths) == 1 and ("refused" in row or bool(row["losses"] and row["of"] > row["datum"]))
        except (KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise DataFileError(f"{SEQUENCES}, line {number}: not a recorded sequence")
    return rows


def _lines(
    loss: Any, batch: Sequence[Datum], output: ForwardBackwardOutput, tokenizer: Any, count: int
) -> list[dict[str, Any]]:
    examined = examine(loss, batch, output.loss_fn_outputs)
    groups = sorted(partners(loss, len(batch)), key=lambda group: _advantage(batch[group[0]]))
    chosen = sorted({round(i) for i in np.linspace(0, len(groups) - 1, max(min(count, len(groups)), 1))})
    sides = ("chosen", "rejected") if loss.couples == "pair" else None
    return [
        _line(examined[datum], batch, tokenizer, sides[place] if sides and len(groups[i]) == 2 else "")
        for i in chosen
        for place, datum in enumerate(groups[i])
    ]


def _advantage(datum: Datum) -> float:
    """The mean over its learned tokens; 0 where there is none."""
    given = datum.loss_fn_inputs.get("advantages")
    if given is None:
        return 0.0
    values, weights = given.to_numpy().reshape(-1), datum.loss_fn_inputs.get("weights")
    counted = values if weights is None or weights.shape != given.shape else values[weights.to_numpy() != 0]
    return float(counted.mean()) if len(counted) and np.isfinite(counted).all() else 0.0


def _line(found: Examined, batch: Sequence[Datum], tokenizer: Any, side: str) -> dict[str, Any]:
    datum = batch[found.datum]
    tokens = _text_tokens(datum, found)
    weight = found.columns["weight"]
    lead = [None] if "target_tokens" in datum.loss_fn_inputs else []  # the first token, which is nobody's target
    learned = np.flatnonzero(weight if weight.ndim == 1 else np.abs(weight).sum(1)) + len(lead)
    start = max(min(int(learned[0]) - OF_THE_PROMPT, len(tokens) - LONGEST), 0) if len(learned) else 0
    stop = min(start + LONGEST, len(tokens))
    columns: dict[str, list[Any]] = {"text": token_texts(tokens, tokenizer)[start:stop], "id": tokens[start:stop]}
    for name, values in found.columns.items():
        columns[name] = [*lead, *_numbers(_of_the_text(name, values, datum))][start:stop]
    line = {
        "datum": found.datum,
        "of": len(batch),
        "side": side,
        "losses": {name: [_number(value), per] for name, (value, per) in found.losses.items()},
        "tokens": columns,
        "cut": [start, len(tokens) - stop],
    }
    if found.embedding_gradient is not None:
        line["embedding_gradient"] = _number(found.embedding_gradient)
    if any(values.ndim == 2 for values in found.columns.values()):
        line["candidates"] = [*lead, *_candidates(found, datum, tokenizer)][start:stop]
    return line


def _text_tokens(datum: Datum, found: Examined) -> list[int]:
    """The sequence's tokens: the first, and each position's target; of K targets the text's own.

    Nothing follows the last position there, so its likeliest target stands for it, if it is read at all.
    """
    tokens = datum.model_input.to_ints()
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None or "logprob" not in found.columns:
        return tokens
    array = targets.to_numpy()
    if array.ndim == 1:
        return [*tokens[:1], *array.tolist()]
    last = found.columns["logprob"][-1]
    return tokens if np.isnan(last).all() else [*tokens, int(array[-1, int(np.nanargmax(last))])]


def _of_the_text(name: str, values: np.ndarray, datum: Datum) -> np.ndarray:
    """[N, K] as one number a position: the text token's own logprob where it is a target, sums of the rest."""
    if values.ndim == 1:
        return values
    if name != "logprob":
        return np.where(np.isnan(values).all(1), np.nan, np.nansum(values, 1))
    following = np.array([*datum.model_input.to_ints()[1:], -1])
    own = datum.loss_fn_inputs["target_tokens"].to_numpy() == following[:, None]
    return np.where(own.any(1), np.take_along_axis(values, own.argmax(1)[:, None], 1)[:, 0], np.nan)


def _candidates(found: Examined, datum: Datum, tokenizer: Any) -> Iterable[list[list[Any]] | None]:
    """Of each position the likeliest targets: text, weight, logprob, gradient."""
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    logprobs, gradients, weights = (found.columns[name] for name in ("logprob", "gradient", "weight"))
    for i, ids in enumerate(targets):
        known = np.flatnonzero(~np.isnan(logprobs[i]))
        best = known[np.argsort(-logprobs[i][known], kind="stable")][:CANDIDATES]
        texts = [token_texts([int(ids[k])], tokenizer)[0] for k in best]
        numbers = [[weights[i] if weights.ndim == 1 else weights[i, k], logprobs[i, k], gradients[i, k]] for k in best]
        yield [[text, *_numbers(row)] for text, row in zip(texts, numbers, strict=True)] or None


def _numbers(values: Iterable[Any]) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    """A JSON number of a few digits, or None, for JSON has no NaN."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
