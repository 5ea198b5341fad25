"""Corrections as the ends of ids: which there are, which are for a sampler's logprobs, and what is said of any other."""

from __future__ import annotations

import pytest

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError, LossContractError
from lossbook.losses.variants.suffixes import ROLLOUT_SUFFIXES, SUFFIXES


def test_all_but_two_are_for_a_sampler_whose_logprobs_are_not_the_trainers() -> None:
    assert set(SUFFIXES) - set(ROLLOUT_SUFFIXES) == {"off_policy_mask", "top_entropy"}
    assert {"token_truncate", "sequence_mask_normalized", "reject_token_k3"} <= set(ROLLOUT_SUFFIXES)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "ppo+token_truncated",
            LossConfigError,
            "'token_truncated' is not a correction. Did you mean 'token_truncate'?",
        ),
        ("ppo+token_mask+token_mask", LossContractError, "ppo+token_mask+token_mask: token_mask is there twice"),
    ],
)
def test_an_end_that_is_none_or_is_there_twice_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        get_loss(name)
    assert message in str(caught.value)
