"""Losses over whole distributions, over candidates and over layers: what these may read, and what must be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor

from lossbook import PerDatum
from lossbook.datums.errors import LossConfigError, LossContractError
from lossbook.losses import Grouping
from lossbook.losses.spec.layers import Layers

from ..cases import loss_of


def one_group(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
    return Grouping([list(range(datums))])


def over_all(vocab_logprobs: Tensor) -> Tensor:
    return -vocab_logprobs[:, 0]


def teacher_alone(logprobs: Tensor, teacher_vocab_logprobs: Tensor) -> Tensor:
    return -logprobs


def with_vectors(vocab_logprobs: Tensor, embeddings: Tensor) -> Tensor:
    return -vocab_logprobs[:, 0]


def with_candidates(vocab_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    return -vocab_logprobs[:, 0]


def with_helpers(vocab_logprobs: Tensor, weights: Tensor, seqs: Any) -> Tensor:
    return -vocab_logprobs[:, 0]


def with_labels(vocab_logprobs: Tensor, label: PerDatum, margin: PerDatum) -> Tensor:
    return -vocab_logprobs[:, 0]


def hosted(data: Any, logprobs_list: Any) -> Any:
    return logprobs_list[0].sum(), {}


@pytest.mark.parametrize(
    ("function", "registration", "why"),
    [
        (over_all, {"per": "datum"}, "must be a loss per token that couples no tokens"),
        (over_all, {"couples": "datum"}, "must be a loss per token that couples no tokens"),
        (hosted, {"per": "batch", "output": "vocab_logprobs"}, "must be a loss per token that couples no tokens"),
        (teacher_alone, {}, "reads vocab_logprobs and no embeddings"),
        (with_vectors, {}, "reads vocab_logprobs and no embeddings"),
        (with_candidates, {"candidates": "teacher_logprobs"}, "has no candidates and no groups: it reads all tokens"),
        (over_all, {"groups": one_group}, "has no candidates and no groups: it reads all tokens"),
        (with_helpers, {}, "cannot read seqs"),
        (with_labels, {}, "cannot read 'label', one number per datum: give one per position"),
    ],
)
def test_a_loss_over_whole_distributions_is_about_single_positions(
    function: Any, registration: dict[str, Any], why: str
) -> None:
    with pytest.raises(LossContractError) as caught:
        loss_of(function, **registration)
    assert str(caught.value) == (
        f"{function.__name__} reads whole distributions, so it is called on a few positions at a time, and {why}"
    )


def test_candidates_are_an_input_of_a_loss_per_token() -> None:
    def own(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return -logprobs

    words: dict[str, Any]
    for words in ({"candidates": "others"}, {"candidates": "teacher_logprobs", "per": "datum"}):
        with pytest.raises(LossContractError, match="must be an input of a loss per token"):
            loss_of(own, **words)
    assert loss_of(own, candidates="teacher_logprobs").spec.candidates == "teacher_logprobs"


def test_a_loss_over_layers_says_of_which_by_keyword() -> None:
    def by_place(layer_embeddings: Tensor, layers: Layers = (3,)) -> Tensor:
        return layer_embeddings.sum((1, 2))

    def by_name(layer_embeddings: Tensor, *, layers: Layers = (3,)) -> Tensor:
        return layer_embeddings.sum((1, 2))

    assert loss_of(by_name, per="datum", config={"layers": [0, 1]}).layers == (0, 1)
    with pytest.raises(LossContractError, match="needs a keyword-only setting that says of which layers"):
        loss_of(by_place, per="datum")
    for wrong, says in (((), "each once"), ((3, -1), "each once"), ((1, 1), "each once"), ((True,), "a valid integer")):
        with pytest.raises(LossConfigError, match=says):
            loss_of(by_name, per="datum", config={"layers": wrong})
