"""Rows of texts that belong together, read, grouped, held out and encoded.

{"query": ..., "positive": ...}                       two texts that belong together; "anchor" means "query" too
{"query": ..., "positive": ..., "negative": ...}      and one that does not; or "negatives": [...]
{"query": ..., "positive": ..., "label": 0.8}         their similarity, for losses that read `label`
{"query": ..., "positive": ..., "negative": ..., "scores": [9.1, 3.2]}    a teacher's scores, for `margin_mse`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ...datums.checks.numbers import is_finite
from ...datums.errors import ConfigError, DataFileError, EmptyLossError, did_you_mean, located, panics_as
from ...datums.files.formats import key_names
from ...datums.types import Datum, ModelInput

#: The two kinds of texts.
Side = Literal["query", "document"]

KEYS = ("query", "positive", "negative", "negatives", "label", "scores")
#: Keys of other formats, and their names here.
ELSEWHERE = {
    "anchor": "query",
    "question": "query",
    "sentence1": "query",
    "text1": "query",
    "pos": "positive",
    "document": "positive",
    "passage": "positive",
    "answer": "positive",
    "sentence2": "positive",
    "text2": "positive",
    "neg": "negatives",
    "score": "label",
}


@dataclass(frozen=True)
class Texts:
    """A row: a query, the text that belongs to it, texts that do not, and the row's numbers.

    group: the same for rows that share a query or a positive; see `grouped`.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    label: float | None = None
    scores: tuple[float, ...] = ()
    group: int = 0


def texts_from_row(row: Mapping[str, Any]) -> Texts:
    """The row's texts. Raises DataFileError for a missing, unknown or unusable key, with the likeliest right one."""
    row = {key: value for key, value in row.items() if value is not None}  # a table has every column in every row
    if "anchor" in row and "query" not in row:  # as Sentence Transformers calls it
        row["query"] = row.pop("anchor")
    unknown = [key for key in row if key not in KEYS]
    if unknown or "query" not in row or "positive" not in row:
        raise DataFileError(_about_keys(row, unknown))
    if "negative" in row and "negatives" in row:
        raise DataFileError("the row has both 'negative' and 'negatives': give one of them")
    negatives = [row["negative"]] if "negative" in row else row.get("negatives", [])
    if not isinstance(negatives, list):
        raise DataFileError(f"'negatives' must be a list of texts, not {type(negatives).__name__}")
    query, positive = _text(row["query"], "query"), _text(row["positive"], "positive")
    if positive in negatives:
        raise DataFileError(f"negatives[{negatives.index(positive)}] is the positive: {positive[:60]!r}")
    label = _number(row["label"], "label") if "label" in row else None
    scores = row.get("scores", [])
    if not isinstance(scores, list) or (scores and len(scores) != 1 + len(negatives)):
        raise DataFileError(
            f"'scores' must be a list of {1 + len(negatives)} numbers: the positive's, then one for each negative"
        )
    return Texts(
        query,
        positive,
        tuple(_text(one, f"negatives[{i}]") for i, one in enumerate(negatives)),
        label,
        tuple(_number(one, f"scores[{i}]") for i, one in enumerate(scores)),
    )


def read_texts(rows: Iterable[Mapping[str, Any]]) -> list[Texts]:
    """All rows. Raises DataFileError naming the row, EmptyLossError when there are none."""
    texts = []
    for index, row in enumerate(rows):
        try:
            texts.append(texts_from_row(row))
        except DataFileError as error:
            raise located(error, str(getattr(row, "place", f"row {index}"))) from None
    if not texts:
        raise EmptyLossError("there are no rows")
    return texts


def grouped(texts: Sequence[Texts]) -> list[Texts]:
    """The rows with their groups: rows that share a query or a positive, directly or through others, are one group.

    Within a group no text is another row's negative: one row's positive may also answer the other row's query.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, one in enumerate(texts):
        for key in (("query", one.query), ("positive", one.positive)):
            parent[root(i)] = root(first.setdefault(key, i))
    return [replace(one, group=root(i)) for i, one in enumerate(texts)]


def held_apart(texts: Sequence[Texts], count: int, seed: int) -> tuple[list[Texts], list[Texts]]:
    """(rows to train on, held-out rows): whole groups are drawn until at least `count` rows are held out.

    Raises EmptyLossError when none would be left to train on.
    """
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    members = Counter(one.group for one in texts)
    out: set[int] = set()
    rows = 0
    for row in order:
        if rows >= count:
            break
        if texts[row].group not in out:
            out.add(texts[row].group)
            rows += members[texts[row].group]
    if rows == len(texts):
        raise EmptyLossError(
            f"holding out {count} of {len(texts)} rows, with the rows of their groups, leaves none to train on"
        )
    return [one for one in texts if one.group not in out], [one for one in texts if one.group in out]


def negatives_used(texts: Sequence[Texts], wanted: int | None) -> int:
    """How many negatives of each row to use: `wanted`, or all. Raises DataFileError for a row with fewer."""
    most = max(len(one.negatives) for one in texts)
    used = most if wanted is None else wanted
    for row, one in enumerate(texts):
        if len(one.negatives) < used:
            raise DataFileError(
                f"row {row} (counted from 0) has {len(one.negatives)} negatives, fewer than "
                + (f"the {used} of another row: set" if wanted is None else f"{used}: set")
                + f" --hard-negatives {len(one.negatives)}"
            )
    return used


@dataclass(frozen=True)
class Encoded:
    """The tokens of queries and of documents, which may have different prefixes.

    longest, cut    tokens of the longest text; how many texts were truncated
    pooled_from     by "query" and "document": the first token of such a text that its pooled vector is of
    """

    queries: Mapping[str, ModelInput]
    documents: Mapping[str, ModelInput]
    longest: int
    cut: int
    pooled_from: Mapping[Side, int] = field(default_factory=dict)

    def datum(self, side: Side, text: str, numbers: Mapping[str, Any] | None = None) -> Datum:
        """The datum of a query or a document, with the numbers that a loss reads."""
        tokens = (self.queries if side == "query" else self.documents)[text]
        start = self.pooled_from.get(side, 0)
        return Datum(tokens, {**(numbers or {}), **({"pooled_from": start} if start else {})})


def encode(
    texts: Sequence[Texts],
    tokenizer: Any,
    max_length: int,
    prefixes: Mapping[Side, str],
    *,
    pools_prefix: bool = True,
    lower_case: bool = False,
) -> Encoded:
    """All texts as tokens, special tokens included, truncated at the end to `max_length`.

    pools_prefix: whether the tokens of a prefix, and the special tokens before them, count in the pooled vector. lower_case:
    whether texts and prefixes are lowered first. Raises ConfigError where a prefix leaves no token to pool.
    """
    sides: dict[Side, list[str]] = {
        "query": list(dict.fromkeys(one.query for one in texts)),
        "document": list(dict.fromkeys(text for one in texts for text in (one.positive, *one.negatives))),
    }
    made: dict[Side, dict[str, ModelInput]] = {}
    pooled_from: dict[Side, int] = {}
    longest = cut = 0
    for side, known in sides.items():
        prefix = prefixes.get(side, "")
        whole = [(prefix + text).lower() if lower_case else prefix + text for text in known]
        full = [len(ids) for ids in _tokens(tokenizer, side, whole, verbose=False)]
        ids = _tokens(tokenizer, side, whole, truncation=True, max_length=max_length)
        made[side] = {text: ModelInput.from_ints(one) for text, one in zip(known, ids, strict=True)}
        longest, cut = max(longest, *full), cut + sum(length > max_length for length in full)
        if prefix and not pools_prefix:
            pooled_from[side] = prefix_tokens(tokenizer, prefix.lower() if lower_case else prefix)
            if short := [text for text, one in made[side].items() if one.length <= pooled_from[side]]:
                raise ConfigError(
                    f"the {side} {short[0][:60]!r} has {made[side][short[0]].length} tokens, of which the first "
                    f"{pooled_from[side]} are the prefix {prefix[:60]!r}: no token is left to pool. Raise --max-length"
                )
    return Encoded(made["query"], made["document"], longest, cut, pooled_from)


def _tokens(tokenizer: Any, side: Side, texts: list[str], **options: Any) -> list[list[int]]:
    """The tokens of each text. Raises DataFileError naming the text on which the tokenizer gives up."""
    try:
        with panics_as(DataFileError, f"the tokenizer, on a {side},"):
            return tokenizer(texts, **options)["input_ids"]
    except DataFileError:
        for text in texts:
            with panics_as(DataFileError, f"the tokenizer, on the {side} {text[:40]!r},"):
                tokenizer(text, **options)
        raise


def prefix_tokens(tokenizer: Any, prefix: str) -> int:
    """How many tokens a prefix has with the special tokens before it, as Sentence Transformers counts them."""
    with panics_as(ConfigError, f"the tokenizer, on the prefix {prefix[:40]!r},"):
        ids = tokenizer(prefix)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        what = "an empty text" if isinstance(value, str) else f"a {type(value).__name__}"
        raise DataFileError(f"{name!r} must be a text, not {what}")
    return value


def _number(value: Any, name: str) -> float:
    if not is_finite(value):
        raise DataFileError(f"{name!r} must be a number, not {value!r}")
    return float(value)


def _about_keys(row: Mapping[str, Any], unknown: Sequence[str]) -> str:
    known = "'query', 'positive', and, if there are any, 'negative' or 'negatives', 'label', 'scores'"
    hints = [f" Rename {key!r} to {ELSEWHERE[key]!r}." for key in unknown if key in ELSEWHERE]
    hints = hints or [f" {key!r}:{hint}" for key in unknown if (hint := did_you_mean(str(key), KEYS))]
    return f"a row has the keys {known}; this one has {key_names(row)}.{''.join(hints[:2])}"
