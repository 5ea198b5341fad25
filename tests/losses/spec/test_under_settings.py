"""What a loss reads under its settings: the key of prompts, the number of likeliest tokens, the layers of a mixture."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError, LossContractError
from lossbook.losses.spec.inputs import IdPerDatum
from lossbook.losses.spec.under_settings import layers_of_all, reduced_by

from ..cases import loss_of


def test_only_prompt_mean_adds_the_key_of_prompts_and_another_reduction_takes_it_away() -> None:
    spec = get_loss("cross_entropy", reduction="token-mean").spec
    assert reduced_by(spec, "token-mean") is spec
    by_prompt = reduced_by(spec, "prompt-mean")
    (group,) = (one for one in by_prompt.inputs if one.name == "group")
    assert (group.required, group.per, group.is_id) == (True, "datum", True)
    assert reduced_by(by_prompt, "prompt-mean") is by_prompt
    assert reduced_by(by_prompt, "sum") == spec
    with_inputs = reduced_by(get_loss("importance_sampling").spec, "prompt-mean")
    assert [one.name for one in with_inputs.inputs] == ["sampling_logprobs", "advantages", "group"]


def test_prompt_mean_leaves_the_key_to_a_function_that_reads_it_itself() -> None:
    def own(logprobs: Tensor, group: IdPerDatum) -> Tensor:
        return -logprobs

    spec = loss_of(own).spec
    assert reduced_by(spec, "prompt-mean") is reduced_by(spec, "sum") is spec


def test_a_loss_over_groups_keeps_its_key_under_any_reduction() -> None:
    spec = get_loss("listnet").spec
    assert [one.name for one in reduced_by(spec, "group-mean").inputs].count("group") == 1
    assert "group" in [one.name for one in reduced_by(spec, "sum").inputs]


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_the_number_of_likeliest_tokens_is_whole_and_positive(count: Any) -> None:
    def likeliest(topk_logprobs: Tensor, *, top_k: Any = 2) -> Tensor:
        return -topk_logprobs[:, 0]

    assert loss_of(likeliest).top_k == 2
    assert loss_of(likeliest, config={"top_k": 1}).top_k == 1
    assert get_loss("cross_entropy").top_k == 0
    with pytest.raises(LossConfigError, match="a whole number of tokens, at least 1"):
        loss_of(likeliest, config={"top_k": count})


def test_parts_of_a_mixture_read_the_same_layers_or_none() -> None:
    assert layers_of_all([]) == layers_of_all([(), ()]) == ()
    assert layers_of_all([(), (3, 6), (3, 6)]) == (3, 6)
    with pytest.raises(LossContractError, match=r"the layers \(3,\) and \(6,\)"):
        layers_of_all([(3,), (), (6,)])
