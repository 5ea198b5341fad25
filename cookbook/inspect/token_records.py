"""Token records: a few sequences at a few steps of a run, with the loss, gradient and other numbers of each token.

A line of sequences.jsonl is one sequence of N positions. The first of its N + 1 tokens is not a target and has no numbers:

    {"step": 40, "datum": 2, "of": 8, "side": "",
     "losses": {"ppo": [-0.31, "token"]},                       value, and what it belongs to
     "tokens": {"text": [...N + 1], "id": [...], "weight": [null, ...], "logprob": [...], "gradient": [...], ...},
     "cut": [0, 0]}                                             tokens left out at the start and the end
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datums.files.show import token_texts
from ...datums.types import Datum, as_datum
from ...losses.cards.card import card_of
from ...losses.registry import get_loss
from ..run.names import LOSS, SEQUENCES
from ..run.records import checked, read_rows
from .recorded import RecordedSequence, RefusedSequence, read_loss
from .token_losses import TokenLosses, datum_groups, token_losses

__all__ = ["read_loss", "read_sequences", "record_loss", "record_sequences"]

if TYPE_CHECKING:
    from ...trainer.responses import ForwardBackwardOutput
    from ..run.runs import Run

#: Longer sequences are cut to this many tokens, to keep files small: the end of the prompt, then the learned tokens.
LONGEST, OF_THE_PROMPT = 400, 60
#: The number of targets written for a position with several.
CANDIDATES = 5
#: Significant digits of a number.
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
    """Append `count` sequences of a call to the run's sequences.jsonl; pairs and other groups count as one.

    loss     the loss of the call
    batch    all datums of the call
    output   the result of the call

    The sequences are spread evenly over the batch, or, if they have advantages, from the lowest advantage to the highest.
    The loss is called once or twice more than by the trainer. If that fails, a line with the reason is written instead: a
    record must not end the run.
    """
    try:
        lines = _lines(get_loss(loss), [as_datum(datum) for datum in batch], output, tokenizer, count)
    except Exception as error:  # a user's function can raise anything
        lines = [{"refused": f"{type(error).__name__}: {error}"}]
    for line in lines:
        run.append(SEQUENCES, {"step": step, **line})


def record_loss(run: Run, loss: Any) -> None:
    """Write the cards of a loss's parts, with the settings of the run, to loss.json. The loss need not be registered."""
    loss = get_loss(loss)
    parts = loss.parts
    cards = [{"factor": factor, **card_of(part, metrics=False).as_dict()} for factor, part in parts]
    run.write(LOSS, json.dumps({"loss": str(loss), "parts": cards}, indent=1))


def read_sequences(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's sequences.jsonl; [] if there is no file. Raises DataFileError that names a damaged row."""
    rows = read_rows(Path(folder) / SEQUENCES)
    for number, row in enumerate(rows, start=1):
        model = RefusedSequence if "refused" in row else RecordedSequence
        checked(model, row, f"{SEQUENCES}, line {number}: not a recorded sequence: it")
    return rows


def _lines(
    loss: Any, batch: Sequence[Datum], output: ForwardBackwardOutput, tokenizer: Any, count: int
) -> list[dict[str, Any]]:
    results = token_losses(loss, batch, output.loss_fn_outputs)
    groups = sorted(datum_groups(loss, len(batch)), key=lambda group: _advantage(batch[group[0]]))
    chosen = sorted({round(i) for i in np.linspace(0, len(groups) - 1, max(min(count, len(groups)), 1))})
    sides = ("chosen", "rejected") if loss.couples == "pair" else None
    return [
        _line(results[datum], batch, tokenizer, sides[member] if sides and len(groups[i]) == 2 else "")
        for i in chosen
        for member, datum in enumerate(groups[i])
    ]


def _advantage(datum: Datum) -> float:
    """The mean advantage of the learned tokens; 0 if there is none."""
    given = datum.loss_fn_inputs.get("advantages")
    if given is None:
        return 0.0
    values, weights = given.to_numpy().reshape(-1), datum.loss_fn_inputs.get("weights")
    learned = values if weights is None or weights.shape != given.shape else values[weights.to_numpy() != 0]
    return float(learned.mean()) if len(learned) and np.isfinite(learned).all() else 0.0


def _line(result: TokenLosses, batch: Sequence[Datum], tokenizer: Any, side: str) -> dict[str, Any]:
    datum = batch[result.datum]
    tokens = _text_tokens(datum, result)
    weight = result.columns["weight"]
    lead = [None] if "target_tokens" in datum.loss_fn_inputs else []  # the first token is not a target
    learned = np.flatnonzero(weight if weight.ndim == 1 else np.abs(weight).sum(1)) + len(lead)
    start = max(min(int(learned[0]) - OF_THE_PROMPT, len(tokens) - LONGEST), 0) if len(learned) else 0
    stop = min(start + LONGEST, len(tokens))
    columns: dict[str, list[Any]] = {"text": token_texts(tokens, tokenizer)[start:stop], "id": tokens[start:stop]}
    for name, values in result.columns.items():
        columns[name] = [*lead, *_numbers(_one_per_position(name, values, datum))][start:stop]
    line = {
        "datum": result.datum,
        "of": len(batch),
        "side": side,
        "losses": {name: [_number(value), per] for name, (value, per) in result.losses.items()},
        "tokens": columns,
        "cut": [start, len(tokens) - stop],
    }
    if result.embedding_gradient is not None:
        line["embedding_gradient"] = _number(result.embedding_gradient)
    if any(values.ndim == 2 for values in result.columns.values()):
        line["candidates"] = [*lead, *_candidates(result, datum, tokenizer)][start:stop]
    return line


def _text_tokens(datum: Datum, result: TokenLosses) -> list[int]:
    """The sequence's tokens: the first token, then the target of each position.

    With K targets per position the input gives the text. Its last token has no successor there, so the likeliest target of
    the last position is appended, if that position is read.
    """
    tokens = datum.model_input.to_ints()
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None or "logprob" not in result.columns:
        return tokens
    array = targets.to_numpy()
    if array.ndim == 1:
        return [*tokens[:1], *array.tolist()]
    last = result.columns["logprob"][-1]
    return tokens if np.isnan(last).all() else [*tokens, int(array[-1, int(np.nanargmax(last))])]


def _one_per_position(name: str, values: np.ndarray, datum: Datum) -> np.ndarray:
    """[N, K] as one number per position: the logprob of the text's own token if it is a target; sums of other columns."""
    if values.ndim == 1:
        return values
    if name != "logprob":
        return np.where(np.isnan(values).all(1), np.nan, np.nansum(values, 1))
    following = np.array([*datum.model_input.to_ints()[1:], -1])
    own = datum.loss_fn_inputs["target_tokens"].to_numpy() == following[:, None]
    return np.where(own.any(1), np.take_along_axis(values, own.argmax(1)[:, None], 1)[:, 0], np.nan)


def _candidates(result: TokenLosses, datum: Datum, tokenizer: Any) -> Iterable[list[list[Any]] | None]:
    """The likeliest targets of each position: text, weight, logprob, gradient."""
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    logprobs, gradients, weights = (result.columns[name] for name in ("logprob", "gradient", "weight"))
    for i, ids in enumerate(targets):
        known = np.flatnonzero(~np.isnan(logprobs[i]))
        best = known[np.argsort(-logprobs[i][known], kind="stable")][:CANDIDATES]
        texts = [token_texts([int(ids[k])], tokenizer)[0] for k in best]
        numbers = [[weights[i] if weights.ndim == 1 else weights[i, k], logprobs[i, k], gradients[i, k]] for k in best]
        yield [[text, *_numbers(row)] for text, row in zip(texts, numbers, strict=True)] or None


def _numbers(values: Iterable[Any]) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    """A number of a few digits for JSON; None for NaN and infinity."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
