"""Preference examples as a loss reads them: pairs of answers, or single answers labelled good or bad.

An example is the datums that must stay together in a batch: the chosen and the rejected one of a pair, or a labelled one;
and, where the loss estimates a KL, an answer to another prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...datums.builders.notes import note_read
from ...datums.builders.tokens import datum_from_tokens_weights
from ...datums.errors import DataFileError, LossContractError, MissingInput
from ...datums.files.formats import format_of, key_names
from ...datums.files.report import DataReport, build_datums
from ...datums.files.rows import datums_from_row
from ...datums.types import Datum
from ...losses.loss.loss import Loss

#: The datums of one row, in the order in which losses read them.
PreferenceExample = list[Datum]
PAIR, LABELLED = "preference pair", "labelled completion"
#: How many of the following rows are searched for an answer to another prompt.
ROWS_SEARCHED = 64


@dataclass(frozen=True)
class Needs:
    """What a loss reads from preference data.

    labels       single answers with `label`; otherwise pairs
    mismatched   answers to other prompts, marked by `is_mismatched`
    reference    `ref_logprobs`
    numbers      inputs of one number per datum, such as `margin`, read from the row; the value says whether it is required
    """

    loss: str
    labels: bool = False
    mismatched: bool = False
    reference: bool = False
    numbers: Mapping[str, bool] = field(default_factory=dict)


def needs_of(loss: Loss, *, values: bool = False) -> Needs:
    """The needs of a loss, from its signature. Raises LossContractError for a loss that preference data cannot serve.

    values: the model has a scalar head, which the loss must read.

    A function in the hosted style, fn(data, logprobs_list), does not name its inputs: it gets pairs with `ref_logprobs`.
    """
    spec = loss.spec
    if values and ("values" not in spec.outputs or spec.per == "token"):
        raise LossContractError(
            f"{loss.name} does not compare scores of a scalar head, so it trains no reward model. Use reward_bt or a loss of "
            "your own that reads `values`; for losses over logprobs use `lossbook train dpo`"
        )
    if "values" in spec.outputs and not values:
        raise LossContractError(f"{loss.name} reads the values of a scalar head: use `lossbook train reward`")
    if "embeddings" in spec.outputs:
        raise LossContractError(f"{loss.name} reads embeddings: use `lossbook train embed`")
    if spec.is_batch_style:
        return Needs(loss.name, reference=True)
    inputs = {wanted.name: wanted for wanted in spec.inputs}
    if "label" not in inputs and spec.per not in ("pair", "batch"):
        raise LossContractError(
            f"{loss.name} reads one {spec.per} at a time and no 'label', so it cannot tell a chosen answer from a rejected "
            "one. Use a loss that compares pairs (dpo, simpo, ...) or reads labels (kto); declare one of your own with "
            "@register_loss(..., per='pair'). To learn the chosen answers only, use `lossbook train sft`"
        )
    return Needs(
        loss.name,
        labels="label" in inputs,
        mismatched="is_mismatched" in inputs,
        reference="ref_logprobs" in inputs,
        numbers={
            name: wanted.required
            for name, wanted in inputs.items()
            if wanted.per == "datum" and name not in ("label", "is_mismatched")
        },
    )


def build_examples(
    rows: Iterable[Mapping[str, Any]], needs: Needs, tokenizer: Any, **options: Any
) -> tuple[list[PreferenceExample], DataReport]:
    """One example per row, and a report about the rows.

    options: `max_length` and `truncation`. For a loss over labels a pair becomes two labelled answers. Raises
    DataFileError for a row of the wrong kind, MissingInput for a missing number, and the errors of `datums_from_row`; each
    names the row.
    """
    sizes: list[int] = []

    def make(row: Mapping[str, Any]) -> PreferenceExample:
        example = [_laid_out(datum, i, row, needs) for i, datum in enumerate(_datums(row, needs, tokenizer, options))]
        sizes.append(len(example))
        return example

    datums, report = build_datums(rows, make)
    ends = np.cumsum(sizes)
    return [datums[end - size : end] for size, end in zip(sizes, ends.tolist(), strict=True)], report


def _datums(row: Mapping[str, Any], needs: Needs, tokenizer: Any, options: Mapping[str, Any]) -> PreferenceExample:
    kind = format_of(row)
    if kind == PAIR or (kind == LABELLED and needs.labels):
        return datums_from_row(row, tokenizer, **options)
    keys = key_names(row, " + ")
    if kind == LABELLED:
        raise DataFileError(
            f"{needs.loss} compares pairs, but the row holds one labelled answer ({keys}). Give 'chosen' and 'rejected' "
            "to the same prompt, or use a loss over labels: kto or apo_zero_unpaired"
        )
    wanted = (
        "'prompt', 'completion' and 'label', or 'chosen' and 'rejected'" if needs.labels else "'chosen', 'rejected'"
    )
    raise DataFileError(f"{needs.loss} needs rows of {wanted} (with 'prompt'), but the row holds {keys}")


def _laid_out(datum: Datum, place: int, row: Mapping[str, Any], needs: Needs) -> Datum:
    """The datum with the other inputs of the loss; place: 0 for a pair's chosen answer, 1 for the rejected one."""
    inputs: dict[str, Any] = dict(datum.loss_fn_inputs)
    if needs.labels and "label" not in inputs:
        inputs["label"] = np.int64(place == 0)
    if needs.mismatched:
        inputs["is_mismatched"] = np.int64(0)
    for name, is_required in needs.numbers.items():
        value = row.get(name)
        note_read(repr(name))
        if value is None and not is_required:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            problem = f"it is {value!r}" if name in row else "there is none"
            raise MissingInput(
                f"{needs.loss} reads a number {name!r} from each row, but {problem}. Add {name!r} to the row"
            )
        inputs[name] = np.float32(value)
    return Datum(datum.model_input, inputs)


def with_mismatched(examples: Sequence[PreferenceExample], max_length: int | None = None) -> list[PreferenceExample]:
    """Each example with one more datum, for the estimate of the KL: its prompt with the answer of another row.

    Ethayarajh et al. 2024, arXiv:2402.01306 section 4.2. The answer is that of the next row with another prompt that fits
    into `max_length`; of pairs, chosen and rejected answers alternate. Nothing is added where none of the following rows
    serves.
    """
    halves = [[_halves(datum) for datum in example] for example in examples]
    extended: list[PreferenceExample] = []
    for i, example in enumerate(examples):
        prompt = halves[i][0][0]
        others = (halves[(i + step) % len(examples)] for step in range(1, min(len(examples), ROWS_SEARCHED + 1)))
        answers = (other[i % len(other)] for other in others if not np.array_equal(other[0][0], prompt))
        fitting = (a for a in answers if max_length is None or len(prompt) + len(a[1]) <= max_length)
        answer = next(fitting, None)
        extended.append(example if answer is None else [*example, _mismatched(prompt, answer, example[0])])
    return extended


def _halves(datum: Datum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens before the first learned one, tokens from there on, and their weights)."""
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    first = int(np.argmax(weights != 0))
    tokens = np.asarray(datum.model_input.to_ints())
    return tokens[: first + 1], datum.loss_fn_inputs["target_tokens"].to_numpy()[first:], weights[first:]


def _mismatched(prompt: np.ndarray, answer: tuple[np.ndarray, np.ndarray, np.ndarray], like: Datum) -> Datum:
    tokens, weights = np.concatenate([prompt, answer[1]]), np.concatenate([np.zeros(len(prompt)), answer[2]])
    made = datum_from_tokens_weights(tokens, weights)
    others = {key: value for key, value in like.loss_fn_inputs.items() if key not in made.loss_fn_inputs}
    return Datum(
        made.model_input, {**made.loss_fn_inputs, **others, "label": np.int64(0), "is_mismatched": np.int64(1)}
    )


def flat(examples: Iterable[PreferenceExample]) -> list[Datum]:
    """All datums, in order."""
    return [datum for example in examples for datum in example]


def regrouped(datums: Sequence[Datum], like: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """The datums of `flat`, divided into examples of the sizes of `like`."""
    remaining = iter(datums)
    return [[next(remaining) for _ in example] for example in like]
