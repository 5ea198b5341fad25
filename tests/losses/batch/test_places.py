"""An error about data names the very datum, position and target: the first that is wrong, wherever it lies."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import (
    AlignmentError,
    InvalidLogprobError,
    LabelError,
    LengthMismatchError,
    LossbookError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    WeightsError,
)

#: Positions of each datum, and those whose weight is 0.
LENGTHS = (2, 3, 2, 1)
MASKED = {(1, 0), (2, 0)}
PLACES = [(i, t) for i, length in enumerate(LENGTHS) for t in range(length)]
ACTIVE = [place for place in PLACES if place not in MASKED]

Arrays = list[dict[str, np.ndarray]]


def batch(columns: int | None = None, **more: float) -> Arrays:
    """Arrays of each datum, of `columns` targets per position; `more`: a number at every position, by key."""
    arrays: Arrays = []
    for i, length in enumerate(LENGTHS):
        shape = (length,) if columns is None else (length, columns)
        weights = np.ones(shape, dtype=np.float32)
        for t in range(length):
            weights[t] = 0.0 if (i, t) in MASKED else 1.0
        own = {key: np.full(shape, value, dtype=np.float32) for key, value in more.items()}
        arrays.append({"target_tokens": np.zeros(shape, dtype=np.int64), "weights": weights, **own})
    return arrays


def datums(arrays: Arrays) -> list[Datum]:
    return [Datum(ModelInput.from_ints(range(n)), dict(own)) for n, own in zip(LENGTHS, arrays, strict=True)]


def logprobs(columns: int | None = None) -> list[torch.Tensor]:
    return [torch.full((n,) if columns is None else (n, columns), -1.0, dtype=torch.float64) for n in LENGTHS]


def message(loss: Any, arrays: Arrays, outputs: Any, error: type[LossbookError]) -> str:
    with pytest.raises(error) as caught:
        loss(datums(arrays), outputs)
    return str(caught.value)


def says(text: str, *words: str) -> bool:
    """Whether the words stand in the text as whole words, in this order."""
    return re.search(r".*".join(rf"\b{re.escape(word)}(?!\w)" for word in words), text, re.DOTALL) is not None


@pytest.mark.parametrize("place", ACTIVE)
@pytest.mark.parametrize(("value", "error"), [(math.nan, NonFiniteLossInput), (0.5, InvalidLogprobError)])
@pytest.mark.parametrize("second", [False, True], ids=["one is wrong", "all after it are wrong too"])
def test_an_input_that_is_wrong_is_named_with_its_place(
    place: tuple[int, int], value: float, error: type[LossbookError], second: bool
) -> None:
    arrays = batch(sampling_logprobs=-1.0, advantages=1.0)
    for i, t in PLACES[PLACES.index(place) :] if second else [place]:
        arrays[i]["sampling_logprobs"][t] = value
    text = message(get_loss("ppo"), arrays, logprobs(), error)
    assert says(text, "sampling_logprobs of datum", str(place[0]), "at position", str(place[1]))


@pytest.mark.parametrize("place", ACTIVE)
@pytest.mark.parametrize(("value", "error"), [(math.nan, NonFiniteLossInput), (0.5, InvalidLogprobError)])
@pytest.mark.parametrize("second", [False, True], ids=["one is wrong", "all after it are wrong too"])
def test_an_output_of_the_model_that_is_wrong_is_named_with_its_place(
    place: tuple[int, int], value: float, error: type[LossbookError], second: bool
) -> None:
    outputs = logprobs()
    for i, t in PLACES[PLACES.index(place) :] if second else [place]:
        outputs[i][t] = value
    text = message(get_loss("cross_entropy"), batch(), outputs, error)
    assert says(text, "logprobs of datum", str(place[0]), "at position", str(place[1]))


@pytest.mark.parametrize("place", ACTIVE)
def test_an_output_beside_several_targets_is_named_with_its_place(place: tuple[int, int]) -> None:
    outputs = logprobs(2)
    outputs[place[0]][place[1], 1] = math.nan
    text = message(get_loss("cross_entropy"), batch(2), outputs, NonFiniteLossInput)
    assert says(text, "logprobs of datum", str(place[0]), "at position", str(place[1]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("second", [False, True], ids=["one is wrong", "all after it are wrong too"])
def test_a_weight_that_is_no_number_is_named_with_its_place(place: tuple[int, int], second: bool) -> None:
    arrays = batch()
    for i, t in PLACES[PLACES.index(place) :] if second else [place]:
        arrays[i]["weights"][t] = math.nan
    text = message(get_loss("cross_entropy"), arrays, logprobs(), NonFiniteLossInput)
    assert says(text, "weights of datum", str(place[0]), "at position", str(place[1]))
    assert "target" not in text


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_weight_of_several_targets_is_named_with_its_target(target: int) -> None:
    arrays = batch(3)
    arrays[2]["weights"][1, target] = math.inf
    text = message(get_loss("cross_entropy"), arrays, logprobs(3), NonFiniteLossInput)
    assert says(text, "weights of datum", "2", "at position", "1", "target", str(target))


@pytest.mark.parametrize("place", ACTIVE)
@pytest.mark.parametrize("second", [False, True], ids=["one is wrong", "all after it are wrong too"])
def test_a_position_without_any_candidate_is_named(place: tuple[int, int], second: bool) -> None:
    arrays = batch(2, teacher_logprobs=-1.0)
    for own in arrays:
        own["weights"] = own["weights"][:, 0]
    for i, t in ACTIVE[ACTIVE.index(place) :] if second else [place]:
        arrays[i]["teacher_logprobs"][t] = -math.inf
    text = message(get_loss("topk_forward_kl"), arrays, logprobs(2), NonFiniteLossInput)
    assert says(text, "teacher_logprobs of datum", str(place[0]), "for all 2 candidates at position", str(place[1]))


#: What is wrong with one datum, by a function of its arrays; the loss; the error.
WRONG_DATUMS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str, Mapping[str, Any], type[LossbookError]]] = {
    "no sampling_logprobs": (lambda own: own.pop("sampling_logprobs"), "ppo", {}, MissingInput),
    "no weights under a mean": (lambda own: own.pop("weights"), "ppo", {"reduction": "token-mean"}, MissingInput),
    "weights too many": (lambda own: own.update(weights=np.ones(9, np.float32)), "ppo", {}, LengthMismatchError),
    "advantages too many": (lambda own: own.update(advantages=np.ones(9, np.float32)), "ppo", {}, LengthMismatchError),
    "a negative weight under a mean": (
        lambda own: own["weights"].__setitem__(-1, -1.0),
        "ppo",
        {"reduction": "token-mean"},
        WeightsError,
    ),
    "targets [N, 2]": (
        lambda own: own.update(target_tokens=own["target_tokens"][:, None].repeat(2, 1)),
        "kto",
        {},
        ShapeError,
    ),
    "a label of 2": (lambda own: own.update(label=np.float32(2.0)), "kto", {}, LabelError),
    "a label of -1": (lambda own: own.update(label=np.float32(-1.0)), "kto", {}, LabelError),
    "two labels": (lambda own: own.update(label=np.ones(2, np.float32)), "kto", {}, ShapeError),
    "a label that is no number": (lambda own: own.update(label=np.float32(math.nan)), "kto", {}, NonFiniteLossInput),
}


@pytest.mark.parametrize("datum", range(len(LENGTHS)))
@pytest.mark.parametrize("wrong", WRONG_DATUMS)
def test_a_datum_that_is_wrong_is_named(wrong: str, datum: int) -> None:
    change, name, settings, error = WRONG_DATUMS[wrong]
    arrays = batch(sampling_logprobs=-1.0, ref_logprobs=-1.0, advantages=1.0)
    for own in arrays:
        own["label"] = np.float32(1.0)
    change(arrays[datum])
    text = message(get_loss(name, **settings), arrays, logprobs(), error)
    assert says(text, "datum", str(datum))
    assert ("Did you mean 0?" in text) == (wrong == "a label of -1")


@pytest.mark.parametrize("masked", range(4))
def test_the_side_of_a_pair_that_has_nothing_left_is_named_with_its_partner(masked: int) -> None:
    arrays = batch(ref_logprobs=-1.0)
    arrays[masked]["weights"][:] = 0.0
    text = message(get_loss("dpo"), arrays, logprobs(), AlignmentError)
    assert says(text, "datum", str(masked), "of 4", "partner", str(masked + 1 - 2 * (masked % 2)))
