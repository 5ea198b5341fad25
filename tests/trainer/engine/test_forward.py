"""From datums to a loss's outputs: padded, packed and one by one agree, and only what a loss reads reaches the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import MissingInput, ModelError, TokenRangeError
from lossbook.trainer.engine import forward
from lossbook.trainer.engine.checks import checked_tokens
from lossbook.trainer.engine.forward import model_outputs, pool, pooled_tokens, target_tokens
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.packing.hidden import hidden_states, trim_to_last_read

MakeDatums = Callable[..., list[lb.Datum]]
PADDED = EngineSettings(batching="padded")
SEQUENCES = [[5, 6, 7, 8, 9, 10], [5], [250, 3, 3, 250], [1, 2], [9]]


@pytest.fixture(scope="module")
def decoder() -> LoadedModel:
    return load_model("tiny", device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def encoder() -> LoadedModel:
    return load_model("tiny-encoder", device="cpu", dtype=torch.float64)


def one_by_one(model: LoadedModel) -> Tensor:
    return torch.cat([hidden_states(model, [sequence], "padded") for sequence in SEQUENCES])


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_decoder_sees_each_sequence_as_if_it_were_alone(decoder: LoadedModel, batching: Any) -> None:
    together = hidden_states(decoder, SEQUENCES, batching)
    torch.testing.assert_close(together, one_by_one(decoder), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_an_encoder_sees_each_sequence_as_if_it_were_alone(encoder: LoadedModel, batching: Any) -> None:
    together = hidden_states(encoder, SEQUENCES, batching)
    torch.testing.assert_close(together, one_by_one(encoder), rtol=1e-9, atol=1e-12)


def test_pooling_is_over_own_tokens_whatever_stands_beside_them() -> None:
    hidden = torch.tensor([[1.0, 0.0], [3.0, 2.0], [10.0, 10.0], [0.0, 6.0], [2.0, 0.0]])
    assert pool(hidden, pooled_tokens([2, 1, 2], "mean")).tolist() == [[2.0, 1.0], [10.0, 10.0], [1.0, 3.0]]
    assert pool(hidden, pooled_tokens([2, 1, 2], "last")).tolist() == [[3.0, 2.0], [10.0, 10.0], [2.0, 0.0]]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_pooling_adds_up_in_full_precision(dtype: torch.dtype, expected: torch.dtype) -> None:
    hidden = torch.full((600, 2), 1.0, dtype=dtype)
    pooled = pool(hidden, pooled_tokens([600], "mean"))
    assert pooled.dtype == expected
    assert pooled.tolist() == [[1.0, 1.0]]


def test_logprobs_are_those_of_a_softmax_over_the_models_own_logits(
    decoder: LoadedModel, make_datums: MakeDatums
) -> None:
    datums, names = make_datums(3), ("logprobs", "entropy")
    tokens = checked_tokens(decoder, datums, names)
    outputs = model_outputs(decoder, datums, tokens, names=names, rows=None, pooling="mean", settings=PADDED)
    expected, entropy = [], []
    for datum in datums:
        logits = decoder.module(torch.tensor([datum.model_input.to_ints()])).logits[0]
        log_softmax = logits.log_softmax(-1)
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        expected.append(log_softmax.gather(1, targets[:, None])[:, 0])
        entropy.append(-(log_softmax.exp() * log_softmax).sum(-1))
    torch.testing.assert_close(outputs.logprobs, torch.cat(expected), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(outputs.entropy, torch.cat(entropy), rtol=1e-9, atol=1e-12)


def test_only_active_positions_reach_the_head(
    decoder: LoadedModel, make_datums: MakeDatums, monkeypatch: pytest.MonkeyPatch
) -> None:
    datums, rows = make_datums(4), []
    real = forward.linear_logprobs

    def counting(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(hidden))
        return real(hidden, *args, **kwargs)

    monkeypatch.setattr(forward, "linear_logprobs", counting)
    tokens = checked_tokens(decoder, datums, ("logprobs",))
    active = [d.loss_fn_inputs["weights"].to_numpy() != 0 for d in datums]
    trimmed, rows_read = trim_to_last_read(decoder, tokens, active)
    how: Any = {"names": ("logprobs",), "pooling": "mean", "settings": PADDED}
    everything = model_outputs(decoder, datums, tokens, rows=None, **how)
    part = model_outputs(decoder, datums, trimmed, rows=torch.from_numpy(rows_read), **how)
    everywhere = torch.from_numpy(np.concatenate(active))
    assert rows == [len(everywhere), int(everywhere.sum())]
    torch.testing.assert_close(part.logprobs, everything.logprobs[everywhere], rtol=1e-12, atol=1e-12)


def test_narrow_targets_are_padded_beside_wide_ones() -> None:
    wide = lb.Datum(lb.ModelInput.from_ints([1, 2]), {"target_tokens": [[3, 4, 5], [6, 7, 8]]})
    narrow = lb.Datum(lb.ModelInput.from_ints([1]), {"target_tokens": [9]})
    assert target_tokens([wide, narrow], [2, 1]).tolist() == [[3, 4, 5], [6, 7, 8], [9, 0, 0]]
    assert target_tokens([wide, narrow], [1, 1]).tolist() == [[3, 4, 5], [9, 0, 0]]
    assert target_tokens([narrow], [1]).tolist() == [9]


def test_an_encoder_has_no_logprobs_and_says_so(encoder: LoadedModel, make_datums: MakeDatums) -> None:
    with pytest.raises(ModelError, match="tiny-encoder is an encoder: it has embeddings, but no logprobs"):
        checked_tokens(encoder, make_datums(1), ["logprobs"])
    checked_tokens(encoder, make_datums(1), ["embeddings"])


def test_values_need_a_value_head_and_say_so_before_any_forward(decoder: LoadedModel, make_datums: MakeDatums) -> None:
    with pytest.raises(ModelError, match=r"tiny has no value head.*create_training_client\('tiny', value_head=True\)"):
        checked_tokens(decoder, make_datums(1), ["logprobs", "values"])


@pytest.mark.parametrize("name", ["logsumexp", "mean_logprobs", "entropy"])
def test_what_an_encoder_cannot_give_is_refused_whatever_its_name(
    encoder: LoadedModel, make_datums: MakeDatums, name: str
) -> None:
    with pytest.raises(ModelError, match="tiny-encoder is an encoder"):
        checked_tokens(encoder, make_datums(1), [name])


def test_logprobs_need_target_tokens_and_embeddings_do_not(decoder: LoadedModel, make_datums: MakeDatums) -> None:
    datums = [*make_datums(1), lb.Datum(lb.ModelInput.from_ints([1, 2]), {"weights": [1.0, 1.0]})]
    with pytest.raises(MissingInput, match=r"datum 1 of 2 carries no target_tokens.*It carries: weights"):
        checked_tokens(decoder, datums, ["logprobs"])
    checked_tokens(decoder, datums, ["embeddings"])


def test_a_token_that_the_model_does_not_know_is_named_before_the_forward(decoder: LoadedModel) -> None:
    datums = [lb.Datum(lb.ModelInput.from_ints([1, 2])), lb.Datum(lb.ModelInput.from_ints([1, 2, 260]))]
    with pytest.raises(TokenRangeError, match=r"datum 1 of 2: model_input has token 260 at position 2.*0 to 259"):
        checked_tokens(decoder, datums, ["embeddings"])


def test_a_sequence_that_is_too_long_for_the_model_is_named(encoder: LoadedModel) -> None:
    datum = lb.Datum(lb.ModelInput.from_ints([1] * 513))
    with pytest.raises(ModelError, match="datum 0 of 1 has 513 tokens, but tiny-encoder reads at most 512"):
        checked_tokens(encoder, [datum], ["embeddings"])
