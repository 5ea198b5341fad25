"""Stop strings, for every kind of decoder: an answer ends with the token that completes one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lossbook.datums.types import SamplingParams
from lossbook.trainer.model.load import load_model
from lossbook.trainer.sampling import blocks as decoding
from lossbook.trainer.sampling.generate import generate
from lossbook.trainer.sampling.stops import StopStrings

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<s>", "[INST]"]
WORDS = ["the", "end", "a", "x", "e", "n", "d", ".", "\n", "1"]


def fast(tokens: list[str], decoder: Any) -> Any:
    """A tokenizer of these tokens, each of them a word of its own."""
    tokenizer: Any = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=None, eos_token=None)


def spaced(mark: str) -> list[str]:
    return [*SPECIAL, *(mark + word for word in WORDS if word != "\n"), mark, *WORDS, "ing", "en"]


def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return fast(
        [*SPECIAL, *alphabet, *(f"Ġ{word}" for word in WORDS if word != "\n"), "end", "ĊĊ"], decoders.ByteLevel()
    )


def llama2() -> Any:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = fast([*spaced("▁"), *BYTES], decoders.Sequence(steps))
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return tokenizer


def word_piece() -> Any:
    tokens = [*SPECIAL, *WORDS, *(f"##{word}" for word in [*WORDS, "ing"])]
    return fast(tokens, decoders.WordPiece(prefix="##", cleanup=False))


DECODERS: dict[str, Any] = {
    "ByteLevel": byte_level,
    "Metaspace": lambda: fast(spaced("▁"), decoders.Metaspace(prepend_scheme="always")),
    "Metaspace, first": lambda: fast(spaced("▁"), decoders.Metaspace(prepend_scheme="first")),
    "Metaspace, never": lambda: fast(spaced("▁"), decoders.Metaspace(prepend_scheme="never")),
    "ByteFallback": llama2,
    "WordPiece": word_piece,
    "BPE with a suffix": lambda: fast([*SPECIAL, *(f"{w}</w>" for w in WORDS), *WORDS], decoders.BPEDecoder("</w>")),
}


@pytest.fixture(scope="module", params=DECODERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return DECODERS[request.param]()


def text_of(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_an_answer_ends_with_the_token_that_completes_a_stop_string(tokenizer: Any):
    """The text of an answer: what it adds to the text of the prompt. Checked where the tokens spell whole characters."""
    ids = st.integers(0, len(tokenizer) - 1)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(st.lists(ids, min_size=1, max_size=3), st.lists(ids, min_size=1, max_size=30), st.data())
    def check(prompt: list[int], answer: list[int], data: st.DataObject) -> None:
        known, whole = text_of(tokenizer, prompt), text_of(tokenizer, prompt + answer)
        assume(known and whole.startswith(known) and "\ufffd" not in whole)
        text = whole[len(known) :]
        assume(text)
        start = data.draw(st.integers(0, len(text) - 1))
        stop = text[start : start + data.draw(st.integers(1, 12))]
        stops = StopStrings(tokenizer, ["never seen", stop])
        grown = [text_of(tokenizer, prompt + answer[: n + 1])[len(known) :] for n in range(len(answer))]
        expected = next(n for n, prefix in enumerate(grown) if stop in prefix)
        completed = [stops.completed(prompt[-1], answer[: n + 1]) for n in range(len(answer))]
        assert completed.index(True) == expected

    check()


@pytest.mark.parametrize(
    ("kind", "prompt", "answer", "stop"),
    [
        ("ByteLevel", "a", ["Ġend"], " end"),
        ("ByteLevel", "[INST]", ["Ġend"], " end"),
        ("ByteFallback", "a", ["▁end"], " end"),
        ("ByteFallback", "[INST]", ["▁end"], " end"),
        ("ByteFallback", "▁", ["▁end"], " end"),
        ("ByteFallback", "<0xE2>", ["▁end"], " end"),
        ("ByteFallback", "▁a", ["▁", "en", "d"], " end"),
        ("ByteFallback", "[INST]", ["▁the", *["x"] * 30, "▁end"], " end"),
        ("Metaspace", "a", ["▁end"], " end"),
        ("Metaspace, first", "[INST]", ["▁end"], " end"),
        ("WordPiece", "the", ["end"], " end"),
        ("WordPiece", "the", ["e", "##n", "##d"], " end"),
        ("BPE with a suffix", "the</w>", ["end"], " end"),
        ("BPE with a suffix", "the", ["a</w>", "end"], " end"),
    ],
)
def test_a_stop_string_that_begins_with_a_space_stops_at_its_last_token(
    kind: str, prompt: str, answer: list[str], stop: str
):
    tokenizer = DECODERS[kind]()
    before, *tokens = tokenizer.convert_tokens_to_ids([prompt, *answer])
    stops = StopStrings(tokenizer, [stop])
    assert [stops.completed(before, tokens[: n + 1]) for n in range(len(tokens))] == [False] * (len(tokens) - 1) + [
        True
    ]


@pytest.mark.parametrize(
    ("answer", "stop"),
    [
        (["<0xE2>", "<0x0A>"], "\n"),
        ([*["<0x98>"] * 40, "<0x0A>"], "\n"),
        (["<0xF0>", "<0x9F>", "<0xC3>", "<0xA9>", "<0x0A>"], "é\n"),
    ],
    ids=str,
)
def test_bytes_that_are_no_character_do_not_hide_a_stop_string_behind_them(answer: list[str], stop: str):
    tokenizer = llama2()
    before, *tokens = tokenizer.convert_tokens_to_ids(["▁a", *answer])
    stops = StopStrings(tokenizer, [stop])
    assert stops.completed(before, tokens)
    assert not any(stops.completed(before, tokens[:n]) for n in range(1, len(tokens)))


def test_tokens_without_text_do_not_hide_the_beginning_of_a_stop_string():
    tokenizer = llama2()
    before, first, last = tokenizer.convert_tokens_to_ids(["▁a", "▁the", "end"])
    nothing = len(tokenizer) + 5  # a row of the head that is no token
    assert StopStrings(tokenizer, ["theend"]).completed(before, [first, *[nothing] * 100, last])
    assert StopStrings(tokenizer, [" the"]).completed(nothing, [first])


def test_sampling_stops_after_the_token_that_completes_the_string(monkeypatch: pytest.MonkeyPatch):
    import torch

    model = load_model("tiny", device="cpu")
    model.tokenizer = DECODERS["Metaspace, first"]()
    end, x = model.tokenizer.convert_tokens_to_ids(["▁end", "x"])
    drawn = iter([end, x, x])
    monkeypatch.setattr(decoding, "choose", lambda logits, *rest: (torch.tensor([next(drawn)]), torch.zeros(1)))
    params = SamplingParams(max_tokens=3, stop=" end", temperature=0.0)
    [sample] = generate(model, [1], num_samples=1, params=params)
    assert (sample.tokens, sample.stop_reason) == ([end], "stop")
