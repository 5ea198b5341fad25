"""Ranks sample each their share of the prompts, from whole weights of one moment: the samples of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lossbook import SamplingParams
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.snapshot import Snapshot
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.responses import SampledSequence
from lossbook.trainer.sampling.prompt_scores import Asked
from lossbook.trainer.shards import local
from lossbook.trainer.training.frozen_model import FrozenModel

from ..ranks.processes import RankProcesses
from .models import accumulate, built, gradients, off, sharded

PROMPTS = [[1, 2, 3, 4, 5], [9, 8], [200, 100, 50]]


def samples_and_gradients(ranks: Ranks, trained: str) -> dict[str, Any]:
    """Samples before and after the weights moved on, of the weights before; logprobs, fingerprint; gradients after all that."""
    model = built(trained) if ranks.size == 1 else sharded(ranks, trained)
    frozen = FrozenModel(Snapshot.sharing(model), EngineSettings())
    before, fingerprint = shares(frozen, ranks), frozen.fingerprint()
    model.before_writing()
    with torch.no_grad():
        for parameter in model.trainable().values():
            local(parameter).mul_(1.5)
    after, logprobs = shares(frozen, ranks), frozen.logprobs(PROMPTS[0])
    accumulate(model, ranks)
    now = shares(FrozenModel(Snapshot.sharing(model), EngineSettings()), ranks)
    return {
        "before": before,
        "after": after,
        "now": now,
        "logprobs": logprobs,
        "fingerprint": fingerprint,
        "gradients": gradients(model),
    }


def shares(frozen: FrozenModel, ranks: Ranks) -> dict[int, Any]:
    """The samples of this rank's prompts, by prompt. Of one prompt alone one rank has none."""
    given: dict[int, Any] = {}
    for first, prompts in enumerate([PROMPTS, PROMPTS[:1]]):
        own = range(len(prompts))[ranks.rank :: ranks.size]
        params = SamplingParams(max_tokens=6)
        responses = frozen.sample(
            [prompts[i] for i in own], 2, params, seeds=[7 + i for i in own], asked=[Asked(logprobs=True)] * len(own)
        )
        given |= {10 * first + i: response for i, response in zip(own, responses, strict=True)}
    return given


def assert_same_samples(one: dict[int, Any], other: dict[int, Any]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        pairs: list[tuple[SampledSequence, SampledSequence]] = list(
            zip(one[key].sequences, other[key].sequences, strict=True)
        )
        for left, right in pairs:
            assert (left.tokens, left.stop_reason) == (right.tokens, right.stop_reason)
            assert left.logprobs == pytest.approx(right.logprobs, abs=1e-5)
        assert one[key].prompt_logprobs[1:] == pytest.approx(other[key].prompt_logprobs[1:], abs=1e-5)


@pytest.mark.parametrize("trained", ["untied", pytest.param("tied", marks=pytest.mark.slow), "lora with a value head"])
def test_samples_of_ranks_are_those_of_one_process_and_do_not_disturb_training(
    ranks: RankProcesses, trained: str
) -> None:
    expected = samples_and_gradients(ALONE, trained)
    results = ranks.run(samples_and_gradients, trained, size=2)
    for moment in ("before", "after", "now"):
        together = {key: response for result in results for key, response in result[moment].items()}
        assert_same_samples(together, expected[moment])
    assert_same_samples(expected["before"], expected["after"])
    for result in results:
        assert result["fingerprint"] == expected["fingerprint"]
        assert result["logprobs"][1:] == pytest.approx(expected["logprobs"][1:], abs=1e-5)
        assert off(result["gradients"], expected["gradients"]) < 1e-6


def fails_on_one(ranks: Ranks) -> list[str]:
    """What each of two calls said: one that fails on the last rank alone, and one that does not fail."""
    frozen = FrozenModel(Snapshot.sharing(sharded(ranks, "untied")), EngineSettings())
    said = []
    for prompts in ([[1, 2]] if ranks.rank == 0 else [[1, 999]], [[1, 2]]):
        try:
            with ranks.agree():
                frozen.sample(prompts, 1, SamplingParams(max_tokens=2))
            said.append("sampled")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_an_error_of_one_rank_reaches_all_and_the_weights_are_shards_again(ranks: RankProcesses) -> None:
    for said in ranks.run(fails_on_one, size=2):
        assert said[0].startswith("TokenRangeError: the prompt has token 999")
        assert said[1] == "sampled"
