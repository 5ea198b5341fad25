"""What is said about a prompt is what the model's own logits say, in float64, at the positions that were asked about."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import TensorData
from lossbook.datums.errors import ModelError, ShapeError, TokenRangeError
from lossbook.trainer.head import logprobs as head_module
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.sampling.prompt_scores import Asked, score_prompt

from ..head.test_memory import LiveBytes

VOCABULARY = 260


@functools.cache
def model_of(dtype: torch.dtype = torch.float64) -> LoadedModel:
    """The tiny decoder with weights that make some tokens much likelier than others."""
    model = load_model("tiny", device="cpu", dtype=dtype)
    with torch.no_grad():
        model.head().weight.mul_(20)
    return model


def own_logprobs(tokens: list[int]) -> np.ndarray:
    """[N - 1, V] by transformers' forward: row i is about token i + 1."""
    with torch.no_grad():
        logits = model_of().module(torch.tensor([tokens])).logits[0, :-1]
    assert logits.dtype == torch.float64
    return logits.log_softmax(1).numpy()


@st.composite
def prompts_and_questions(draw: st.DrawFn) -> tuple[list[int], Asked]:
    tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30))
    rows, ids = len(tokens) - 1, st.sampled_from([-1, -1, 0, 1, 77, VOCABULARY - 1])
    width = draw(st.none() | st.integers(0, 3))
    targets = None
    if width == 0:
        targets = TensorData(draw(st.lists(ids, min_size=rows, max_size=rows)), "int64", [rows])
    elif width is not None:
        listed = [draw(st.lists(ids, min_size=width, max_size=width)) for _ in range(rows)]
        targets = TensorData(np.array(listed, np.int64).reshape(rows, width))
        if draw(st.booleans()) and rows:
            targets = sparse(targets)
    topk = draw(st.sampled_from([0, 1, 5, VOCABULARY]))
    logprobs = draw(st.booleans())
    last = draw(st.none() | st.integers(1, rows)) if rows and (topk or logprobs) else None
    return tokens, Asked(logprobs, topk, targets, last)


def sparse(dense: TensorData) -> TensorData:
    """The ids that are not -1, as a sparse tensor."""
    array = dense.to_numpy()
    rows, columns = (array >= 0).nonzero()
    crow = np.concatenate([[0], np.cumsum((array >= 0).sum(1))]).tolist()
    return TensorData(array[rows, columns], "int64", dense.shape, crow, columns.tolist())


@given(prompts_and_questions())
@settings(max_examples=25, deadline=None)
def test_all_answers_are_those_of_the_models_own_logits(case: tuple[list[int], Asked]) -> None:
    tokens, asked = case
    scores, own = score_prompt(model_of(), tokens, asked), own_logprobs(tokens)
    rows = len(tokens) - 1
    known = np.arange(rows) >= (rows - asked.last if asked.last else 0)
    following = own[np.arange(rows), tokens[1:]]
    if asked.logprobs:
        assert scores.prompt_logprobs is not None
        assert [one is not None for one in scores.prompt_logprobs] == [False, *known.tolist()]
        given = [one for one in scores.prompt_logprobs if one is not None]
        assert given == pytest.approx(following[known].tolist(), abs=1e-5)
    else:
        assert scores.prompt_logprobs is None
    if asked.topk:
        assert scores.topk_prompt_logprobs is not None
        check_likeliest(scores.topk_prompt_logprobs, own, known, asked.topk)
    else:
        assert scores.topk_prompt_logprobs is None
    check_targets(scores.target_prompt_logprobs, asked.targets, own)


def check_likeliest(top: Any, own: np.ndarray, known: np.ndarray, k: int) -> None:
    assert top.tokens.shape == top.logprobs.shape == (len(own) + 1, k)
    assert [one is not None for one in top.lists()] == [False, *known.tolist()]
    ids, logprobs = top.tokens[1:][known], top.logprobs[1:][known]
    assert all(len(set(row)) == k for row in ids.tolist())
    np.testing.assert_allclose(logprobs, np.sort(own[known], 1)[:, ::-1][:, :k], atol=1e-5)
    np.testing.assert_allclose(logprobs, np.take_along_axis(own[known], ids, 1), atol=1e-5)


def check_targets(scores: TensorData | None, targets: TensorData | None, own: np.ndarray) -> None:
    if targets is None or scores is None:
        assert scores is targets is None
        return
    assert (scores.shape, scores.sparse_crow_indices) == (targets.shape, targets.sparse_crow_indices)
    wanted, given = targets.to_numpy(), scores.to_numpy()
    if targets.sparse_crow_indices is not None:  # what is not listed was not asked about, and is 0 in both
        listed = TensorData(
            [1.0] * len(targets.data), "float32", targets.shape, targets.sparse_crow_indices, targets.sparse_col_indices
        )
        wanted = np.where(listed.to_numpy() > 0, wanted, -1)
    if not wanted.size:
        return
    wanted, given = wanted.reshape(len(own), -1), given.reshape(len(own), -1)
    expected = np.where(wanted < 0, 0.0, np.take_along_axis(own, wanted.clip(0), 1))
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_no_matrix_of_tokens_by_vocabulary_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("tiny", device="cpu")
    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", 4096)
    monkeypatch.setitem(head_module.TILE_ROWS, "cpu", 32)

    def held(count: int, asked: Asked) -> int:
        with LiveBytes() as live:
            score_prompt(model, [7] * count, asked)
        return live.peak

    count = 200
    beside = held(count, Asked(logprobs=True, topk=3)) - held(count, Asked(logprobs=True))
    assert beside < 4 * count * VOCABULARY / 8, "a few numbers a position more than logprobs alone take"


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (
            Asked(topk=261),
            ModelError,
            "topk_prompt_logprobs must be 0 (none) to 260, the size of tiny's vocabulary, not 261",
        ),
        (Asked(topk=-1), ModelError, "not -1"),
        (
            Asked(logprobs=True, last=0),
            ModelError,
            "prompt_logprobs_last_n must be 1 to 2 for a prompt of 3 tokens, not 0",
        ),
        (Asked(logprobs=True, last=3), ModelError, "not 3"),
        (Asked(last=1), ModelError, "ask for prompt logprobs or topk_prompt_logprobs too"),
        (Asked(targets=TensorData([1, 2, 3])), ShapeError, "int64 [2] or [2, K] for a prompt of 3 tokens"),
        (Asked(targets=TensorData([0.5, 1.5])), ShapeError, "not float32 [2]"),
        (Asked(targets=TensorData([1, 260])), TokenRangeError, "names token 260"),
        (Asked(targets=TensorData([1, -2])), TokenRangeError, "names token -2"),
    ],
)
def test_what_cannot_be_said_is_refused_before_the_model_runs(asked: Asked, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        score_prompt(model_of(), [1, 2, 3], asked)
    assert says in str(raised.value)
