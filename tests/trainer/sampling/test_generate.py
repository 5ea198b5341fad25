"""Sampling: what it draws, where it stops, what it reports, and that it costs the trainer nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook.datums.errors import DtypeError, ModelError, TokenRangeError, TruncationError
from lossbook.datums.types import SamplingParams
from lossbook.trainer.head.logprobs import linear_logprobs
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.sampling import blocks as decoding
from lossbook.trainer.sampling import generate as generate_module
from lossbook.trainer.sampling.generate import Generated, generate, generate_batch

PROMPT = [258, 117, 10, 104, 105, 259, 10]
PROMPTS = [PROMPT, [5], [200, 3, 77], list(range(40)), [9, 9], PROMPT[:4]]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """Tiny with weights large enough that its distributions are far from uniform."""
    loaded = load_model("tiny", device="cpu")
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.mul_(2.0 if parameter.ndim == 2 else 1.0)
    return loaded


def taught(model: LoadedModel, prompt: list[int], sample: Generated) -> Tensor:
    """Logprobs of the generated tokens from one plain forward over prompt and continuation."""
    tokens = torch.tensor([prompt + sample.tokens])
    with torch.no_grad():
        hidden = model.backbone(tokens, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        return linear_logprobs(hidden, model.head(), torch.tensor(sample.tokens)).logprobs


def greedy(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "stop": [], **changes})


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_prompts_with_seeds_of_their_own_have_the_samples_that_each_has_alone_with_its_seed(model: LoadedModel):
    params = SamplingParams(max_tokens=8, stop=[], seed=1)
    together = generate_batch(model, [PROMPT, PROMPT, PROMPT], num_samples=2, params=params, seeds=[7, 8, 7])
    alone = [
        generate(model, PROMPT, num_samples=2, params=SamplingParams(max_tokens=8, stop=[], seed=s)) for s in (7, 8)
    ]
    tokens = [[one.tokens for one in group] for group in together]
    assert tokens[0] == tokens[2] == [one.tokens for one in alone[0]]
    assert tokens[1] == [one.tokens for one in alone[1]] != tokens[0]


def test_seeds_that_are_not_one_a_prompt_are_refused(model: LoadedModel):
    with pytest.raises(ModelError, match="there are 2 prompts but 3 seeds"):
        generate_batch(model, [PROMPT, PROMPT], params=SamplingParams(max_tokens=1), seeds=[1, 2, 3])


def test_greedy_takes_the_likeliest_token_each_time(model: LoadedModel):
    [sample] = generate(model, PROMPT, num_samples=1, params=greedy())
    tokens = list(PROMPT)
    for token in sample.tokens:
        assert token == int(model.module(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)
    assert (len(sample.tokens), sample.stop_reason) == (12, "length")


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=15, seed=1, stop=[]),
        SamplingParams(max_tokens=15, seed=1, temperature=2.5, top_k=7, top_p=0.6, stop=[]),
        SamplingParams(max_tokens=15, seed=1, temperature=0.3),
        greedy(),
    ],
    ids=["plain", "hot, top-k and top-p", "cold", "greedy"],
)
def test_logprobs_are_those_of_the_model_itself_whatever_was_sampled_from(model: LoadedModel, params: SamplingParams):
    for prompt, group in zip(PROMPTS, generate_batch(model, PROMPTS, num_samples=3, params=params), strict=True):
        for sample in group:
            expected = taught(model, prompt, sample)
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, rtol=0, atol=1e-5)


def test_logprobs_agree_also_through_an_adapter_on_every_layer():
    model = add_lora(load_model("tiny", device="cpu"), rank=4, seed=0, train_unembed=True)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1)
    [sample] = generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=10, seed=0))
    torch.testing.assert_close(torch.tensor(sample.logprobs), taught(model, PROMPT, sample), rtol=0, atol=1e-5)


def test_samples_follow_the_distribution(model: LoadedModel):
    count = 4000
    samples = generate(model, [5], num_samples=count, params=SamplingParams(max_tokens=1, seed=0, temperature=1.5))
    logits = model.module(torch.tensor([[5]])).logits[0, -1].double()
    expected = (logits / 1.5).softmax(0)
    drawn = Counter(one.tokens[0] for one in samples)
    for token in expected.topk(10).indices.tolist():
        p = float(expected[token])
        assert abs(drawn[token] / count - p) < 5 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (-1, 0.5), (20, 0.3), (1, 1.0), (1000, 1.0), (-1, 1e-9)])
def test_nothing_outside_top_k_and_top_p_is_drawn_and_everything_inside_is(
    model: LoadedModel, top_k: int, top_p: float
):
    params = SamplingParams(max_tokens=1, seed=0, top_k=top_k, top_p=top_p)
    drawn = {one.tokens[0] for one in generate(model, [5], num_samples=3000, params=params)}
    probabilities = model.module(torch.tensor([[5]])).logits[0, -1].double().softmax(0)
    kept = probabilities.sort(descending=True)
    values = kept.values[: top_k if top_k > 0 else None]
    values = values / values.sum()
    allowed = kept.indices[: len(values)][values.cumsum(0) - values < top_p].tolist()
    assert drawn <= set(allowed)
    assert drawn >= {token for token in allowed if probabilities[token] > 0.01}


def test_a_temperature_near_zero_is_greedy(model: LoadedModel):
    cold = generate(model, PROMPT, num_samples=1, params=greedy(temperature=1e-30, seed=0))
    assert cold[0].tokens == generate(model, PROMPT, num_samples=1, params=greedy())[0].tokens


# --- seeds and the random state ---------------------------------------------------------------------------------------


def test_a_seed_fixes_the_samples_which_differ_from_each_other(model: LoadedModel):
    params = SamplingParams(max_tokens=8, seed=3)
    first, again = (generate(model, PROMPT, num_samples=4, params=params) for _ in range(2))
    assert [one.tokens for one in first] == [one.tokens for one in again]
    assert len({tuple(one.tokens) for one in first}) == 4
    other = generate(model, PROMPT, num_samples=4, params=SamplingParams(max_tokens=8, seed=4))
    assert [one.tokens for one in first] != [one.tokens for one in other]


def test_without_a_seed_every_call_differs(model: LoadedModel):
    first, again = (generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=12)) for _ in range(2))
    assert first[0].tokens != again[0].tokens


def test_the_global_random_state_modes_and_gradients_are_as_before(model: LoadedModel):
    model.module.train()
    model.module.model.layers[1].eval()  # type: ignore[union-attr,index,operator]
    modes = [part.training for part in model.module.modules()]
    state = torch.get_rng_state()
    generate(model, PROMPT, num_samples=2, params=SamplingParams(max_tokens=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.module.modules()] == modes
    model.module.eval()


def test_the_modes_come_back_also_after_an_error(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    model.module.train()
    monkeypatch.setattr(decoding, "choose", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=3))
    assert model.module.training
    model.module.eval()


def test_a_model_can_be_trained_after_it_was_sampled_from():
    model = load_model("tiny", device="cpu").train_all_weights()
    generate(model, PROMPT, num_samples=2, params=SamplingParams(max_tokens=3))
    model.module(torch.tensor([PROMPT])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.trainable().values())


# --- many prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [64, 2, 1])
def test_prompts_decoded_together_give_what_each_alone_gives(
    model: LoadedModel, together: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generate_module, "MAX_ROWS", together)
    for params in (greedy(stop=None), SamplingParams(max_tokens=10, seed=5, temperature=0.7)):
        batch = generate_batch(model, PROMPTS, num_samples=2, params=params)
        for prompt, group in zip(PROMPTS, batch, strict=True):
            alone = generate(model, prompt, num_samples=2, params=params)
            assert [one.tokens for one in group] == [one.tokens for one in alone]
            assert [one.stop_reason for one in group] == [one.stop_reason for one in alone]
            for mine, other in zip(group, alone, strict=True):
                assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_no_prompts_give_no_results(model: LoadedModel):
    assert generate_batch(model, [], params=SamplingParams()) == []


def small(kind: str) -> LoadedModel:
    """Other ways to know positions: a table, ALiBi without position_ids, and a window of four tokens."""
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig
    from transformers import MistralForCausalLM as Mistral

    torch.manual_seed(0)
    ends: dict[str, Any] = {"eos_token_id": 256, "bos_token_id": 256}
    if kind == "gpt2":
        module = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64, **ends))
    elif kind == "bloom":
        module = BloomForCausalLM(
            BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=2, pad_token_id=257, **ends)
        )
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        module = Mistral(MistralConfig(vocab_size=260, **sizes, num_key_value_heads=1, sliding_window=4, **ends))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4.0 if parameter.ndim == 2 else 1.0)
    module.eval()
    return LoadedModel(kind, module, build_tiny_tokenizer(), "decoder", torch.device("cpu"))


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "mistral"])
def test_padding_is_invisible_to_other_architectures_too(kind: str):
    model = small(kind)
    params = greedy(max_tokens=10)
    batch = generate_batch(model, PROMPTS, params=params)
    for prompt, [sample] in zip(PROMPTS, batch, strict=True):
        [alone] = generate(model, prompt, num_samples=1, params=params)
        assert sample.tokens == alone.tokens
        torch.testing.assert_close(torch.tensor(sample.logprobs), taught(model, prompt, sample), rtol=0, atol=1e-5)


def test_finished_rows_leave_the_batch(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    full = generate(model, PROMPT, num_samples=16, params=SamplingParams(max_tokens=30, seed=0, stop=[]))
    stop = full[0].tokens[2]
    widths: list[int] = []
    choose = decoding.choose
    monkeypatch.setattr(
        decoding, "choose", lambda logits, *rest: (widths.append(len(logits)), choose(logits, *rest))[1]
    )
    continued = generate(
        model, PROMPT, num_samples=16, params=SamplingParams(max_tokens=30, seed=0, stop=[stop, *range(120)])
    )
    assert widths[0] == 16
    assert min(widths) < 8
    for whole, cut in zip(full, continued, strict=True):
        assert cut.tokens == whole.tokens[: len(cut.tokens)]


# --- where it stops ---------------------------------------------------------------------------------------------------


def told(tokens: list[int]) -> tuple[Tensor, Tensor]:
    """What `choose` returns, with these tokens."""
    return torch.tensor(tokens), torch.zeros(len(tokens))


def only(model: LoadedModel, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model emit one token for ever."""
    monkeypatch.setattr(decoding, "choose", lambda logits, *rest: told([token] * len(logits)))


@pytest.mark.parametrize("token", [256, 259], ids=["the tokenizer's and config's end", "the generation config's other"])
def test_every_end_token_stops_by_default_and_is_part_of_the_answer(model: LoadedModel, token: int, monkeypatch):
    only(model, token, monkeypatch)
    [sample] = generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=5))
    assert (sample.tokens, sample.stop_reason, len(sample.logprobs)) == ([token], "stop", 1)


def test_an_empty_stop_list_stops_at_nothing(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    only(model, 256, monkeypatch)
    [sample] = generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=5, stop=[]))
    assert (sample.tokens, sample.stop_reason) == ([256] * 5, "length")


@pytest.mark.parametrize(
    ("stop", "length"),
    [
        pytest.param("é", 2, id="a string of two tokens"),
        pytest.param(["zz", "éé"], 4, id="any of several strings"),
        pytest.param([0xA9], 2, id="a token id"),
        pytest.param(["x" * 50, "é"], 2, id="beside a long one"),
    ],
)
def test_a_given_stop_replaces_the_end_tokens(model: LoadedModel, stop: Any, length: int, monkeypatch):
    letters = iter([0xC3, 0xA9] * 5)  # "é" in UTF-8
    monkeypatch.setattr(decoding, "choose", lambda logits, *rest: told([next(letters)]))
    [sample] = generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=8, stop=stop))
    assert (len(sample.tokens), sample.stop_reason) == (length, "stop")


def test_a_special_token_can_be_named_as_a_stop_string(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    only(model, 258, monkeypatch)
    [sample] = generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=5, stop="<|im_start|>"))
    assert (sample.tokens, sample.stop_reason) == ([258], "stop")


def test_a_stop_string_in_the_prompt_does_not_count(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    only(model, 98, monkeypatch)
    prompt = model.tokenizer.encode("a")
    [sample] = generate(model, prompt, num_samples=1, params=SamplingParams(max_tokens=3, stop="ab"))
    assert sample.stop_reason == "length"


@pytest.mark.parametrize("stop", [None, "\x07"], ids=["end token", "string"])
def test_a_stop_on_the_last_token_allowed_is_a_stop(model: LoadedModel, stop: str | None, monkeypatch):
    only(model, 256 if stop is None else 7, monkeypatch)
    [sample] = generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=1, stop=stop))
    assert sample.stop_reason == "stop"


@pytest.mark.parametrize("max_tokens", [None, 10_000])
def test_generation_ends_with_the_context(max_tokens: int | None, monkeypatch: pytest.MonkeyPatch):
    model = load_model("tiny", device="cpu")
    monkeypatch.setattr(model.module.config, "max_position_embeddings", 12)
    group = generate_batch(model, [PROMPT, [1] * 11], params=greedy(max_tokens=max_tokens))
    assert [(len(sample.tokens), sample.stop_reason) for [sample] in group] == [(5, "length"), (1, "length")]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"temperature": -0.1}, ModelError, "temperature must be 0", id="negative temperature"),
        pytest.param({"temperature": math.nan}, ModelError, "temperature must be 0.*not nan", id="NaN temperature"),
        pytest.param({"temperature": math.inf}, ModelError, "positive and finite, not inf", id="infinite temperature"),
        pytest.param({"temperature": None}, ModelError, "temperature must be 0.*not None", id="no temperature"),
        pytest.param({"top_p": 0.0}, ModelError, "top_p must be above 0 and at most 1", id="top_p of nothing"),
        pytest.param({"top_p": 1.1}, ModelError, r"top_p .* not 1\.1", id="top_p beyond all"),
        pytest.param({"top_p": math.nan}, ModelError, "top_p .* not nan", id="NaN top_p"),
        pytest.param({"top_k": 0}, ModelError, r"top_k must be -1 \(off\) or at least 1, not 0", id="top_k of nothing"),
        pytest.param({"max_tokens": 0}, ModelError, "max_tokens must be at least 1", id="no tokens"),
        pytest.param({"stop": ["a", ""]}, ModelError, "an empty string in stop", id="empty stop"),
        pytest.param({"stop": ["a", 3]}, ModelError, "strings or token ids, not both", id="mixed stops"),
        pytest.param({"stop": [260]}, TokenRangeError, "stop token 260 is outside", id="stop beyond the vocabulary"),
    ],
)
def test_impossible_parameters_are_refused(model: LoadedModel, change: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        generate(model, PROMPT, num_samples=1, params=SamplingParams(**{"max_tokens": 2, **change}))


ANYTHING: list[Any] = [
    *(None, True, False, 0, -2, 3, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, 0.5, 1.5, -1.5, math.nan, math.inf, 1j),
    *(
        "",
        "3",
        "a",
        b"",
        b"a",
        bytearray(b"a"),
        memoryview(b"a"),
        [],
        [3],
        [True],
        [None],
        [1.5],
        [b"a"],
        [[3]],
        ["a", 3],
    ),
    *((), (3,), ("a",), {}, {"a": 3}, {3}, set(), object(), int, len, SamplingParams(), range(3), [""], [10**400]),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.array(3), np.array([3]), np.array([0.5]), np.array(["a"])),
    *(torch.tensor(3), torch.tensor([3]), torch.tensor([0.5]), Decimal("0.5"), Fraction(1, 2)),
]
#: What each field takes, by Python's own type checks.
TAKES: dict[str, Callable[[Any], bool]] = {
    "max_tokens": lambda x: x is None or (whole(x) and x >= 1),
    "seed": lambda x: x is None or (whole(x) and -(2**63) <= x < 2**64),
    "seeds": lambda x: TAKES["seed"](x),
    "top_k": lambda x: whole(x) and (x == -1 or x >= 1),
    "top_p": lambda x: real(x) and 0 < x <= 1,
    "temperature": lambda x: real(x) and x >= 0 and x != math.inf and not (whole(x) and x > 2**1000),
}


def takes(name: str, value: Any) -> bool:
    if name != "stop":
        return TAKES[name](value)
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()
    if value is None or isinstance(value, str):
        return value != ""
    if isinstance(value, list | tuple | set | range):
        items = list(value)
        return all(type(x) is str and x for x in items) or all(whole(x) and 0 <= x < 260 for x in items)
    return whole(value) and 0 <= value < 260


def whole(x: Any) -> bool:
    return type(x) is int or isinstance(x, np.integer)


def real(x: Any) -> bool:
    return whole(x) or isinstance(x, float | np.floating | Fraction)


@pytest.mark.parametrize(
    "value", ANYTHING, ids=lambda value: re.sub(r" (at )?0x.*", "", f"{type(value).__name__} {value!r:.20}")
)
@pytest.mark.parametrize("name", [*TAKES, "stop"])
def test_every_field_takes_what_it_says_and_refuses_the_rest_in_one_line_with_its_name(
    model: LoadedModel, name: str, value: Any
):
    params = {"max_tokens": 1, "stop": [], **({} if name == "seeds" else {name: value})}
    seeds: dict[str, Any] = {"seeds": [value]} if name == "seeds" else {}
    length = (model.max_length or 3) - 2 if name == "max_tokens" else 1  # the rest of the context is two tokens

    def sample() -> None:
        generate_batch(model, [[5] * length], params=SamplingParams(**params), **seeds)

    if takes(name, value):
        sample()
    else:
        with pytest.raises((ModelError, TokenRangeError), match=rf"^(an empty string in )?{name}[^\n]*$"):
            sample()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 1.5}, r"max_tokens must be at least 1, or None for the rest of the context, not 1\.5$"),
        ({"seed": 2**64}, r"seed must be an integer from -2\*\*63 to 2\*\*64 - 1, .* not 18446744073709551616$"),
        ({"top_k": "3"}, r"top_k must be -1 \(off\) or at least 1, not '3'$"),
        ({"stop": b"a"}, r"stop must be a string, a list of strings or a list of token ids, not b'a'$"),
        ({"stop": [True]}, r"stop must hold strings or token ids, not True$"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_by_its_field(model: LoadedModel, change: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=message):
        generate(model, PROMPT, num_samples=1, params=SamplingParams(**{"max_tokens": 2, **change}))


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        pytest.param([[]], ModelError, "the prompt is empty", id="empty"),
        pytest.param([PROMPT, []], ModelError, "prompt 1 of 2 is empty", id="one of two empty"),
        pytest.param([[5, 260]], TokenRangeError, "token 260 at position 1; tiny knows tokens 0 to 259", id="too high"),
        pytest.param([[-1]], TokenRangeError, "token -1 at position 0", id="negative"),
        pytest.param([[1.5]], DtypeError, "must be integers", id="not an integer"),
        pytest.param(
            [[1] * 4096], TruncationError, "4096 tokens, which leaves no room in the context of 4096", id="long"
        ),
    ],
)
def test_impossible_prompts_are_refused(model: LoadedModel, prompts: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        generate_batch(model, prompts, params=SamplingParams(max_tokens=2))


@pytest.mark.parametrize("num_samples", [0, -1, 1.0, True])
def test_an_impossible_number_of_samples_is_refused(model: LoadedModel, num_samples: Any):
    with pytest.raises(ModelError, match="num_samples must be an integer of at least 1"):
        generate(model, PROMPT, num_samples=num_samples, params=SamplingParams(max_tokens=2))


def test_an_encoder_cannot_be_sampled_from():
    with pytest.raises(ModelError, match="is an encoder"):
        generate(load_model("tiny-encoder"), [1], num_samples=1, params=SamplingParams(max_tokens=2))


def test_a_model_of_nan_weights_is_reported():
    model = load_model("tiny", device="cpu")
    with torch.no_grad():
        model.module.lm_head.weight.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="tiny gave NaN logits after 0 generated tokens"):
        generate(model, PROMPT, num_samples=1, params=SamplingParams(max_tokens=2))
