"""Texts of prompt and completion are joined: the tokens spell both and nothing else, for every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lossbook.datums import Datum, datum_from_row, datums_from_row
from lossbook.datums.errors import DataFileError

#: Words that the tokenizers below merge, with the space before them as SentencePiece and GPT-2 do.
WORDS = ("def", "world", "Hello", "in", "the", "):", "==", "\n\n")


def merged(words: list[str], base: dict[str, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and the merges that build the words from left to right."""
    vocabulary, merges = dict(base), []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    return vocabulary, merges


def llama_tokenizer(*, begins: bool = True, legacy: bool = True) -> Any:
    """As Llama 2's: a space before every text, no bytes lost, <s> before every text.

    legacy: by a normalizer that prepends the space, as Llama 2's file does; otherwise by a Metaspace pre-tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789?.*+<>/()[]:=,!'\"_-é\n"
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    base = {text: i for i, text in enumerate([*specials, *characters])}
    vocabulary, merges = merged([*("▁" + word for word in WORDS[:-1]), *WORDS], base)
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    if begins:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt_tokenizer() -> Any:
    """As GPT-2's: bytes, words with the space before them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = ["Ġ" + word for word in WORDS[:-1]] + [*WORDS[:-1], "ĊĊ"]
    vocabulary, merges = merged(words, base)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


TOKENIZERS = {
    "Llama 2": llama_tokenizer(),
    "Llama 2, by Metaspace": llama_tokenizer(legacy=False),
    "no <s>": llama_tokenizer(begins=False),
    "GPT-2": gpt_tokenizer(),
}
LLAMA = TOKENIZERS["Llama 2"]


def tokens(datum: Datum) -> list[int]:
    return [*datum.model_input.to_ints(), int(datum.loss_fn_inputs["target_tokens"].data[-1])]


def spelled(datum: Datum, tokenizer: Any) -> str:
    return tokenizer.decode(tokens(datum), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def learned(datum: Datum, tokenizer: Any) -> list[str]:
    inputs = datum.loss_fn_inputs
    ids = [int(t) for t, w in zip(inputs["target_tokens"].data, inputs["weights"].data, strict=True) if w]
    return tokenizer.convert_ids_to_tokens(ids)


def test_the_tokenizers_here_do_what_llama_2s_does() -> None:
    assert LLAMA.convert_ids_to_tokens(LLAMA("def f(")["input_ids"]) == ["<s>", "▁def", "▁", "f", "("]
    assert LLAMA.convert_ids_to_tokens(LLAMA("a):", add_special_tokens=False)["input_ids"]) == ["▁", "a", "):"]
    assert LLAMA.decode(LLAMA("def f(", add_special_tokens=False)["input_ids"]) == "def f("


@pytest.mark.parametrize("name", ["Llama 2", "Llama 2, by Metaspace", "no <s>"])
def test_no_space_comes_between_a_prompt_and_its_completion(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    datum = datum_from_row({"prompt": "def f(", "completion": "a):"}, tokenizer)
    assert spelled(datum, tokenizer).removeprefix("<s>").strip() == "def f(a):</s>"
    assert learned(datum, tokenizer) == ["a", "):", "</s>"]


def test_pairs_and_labelled_completions_are_joined_as_completions_are() -> None:
    chosen, rejected = datums_from_row({"prompt": "def f(", "chosen": "a):", "rejected": "b):"}, LLAMA)
    labelled = datum_from_row({"prompt": "def f(", "completion": "a):", "label": False}, LLAMA)
    plain = datum_from_row({"prompt": "def f(", "completion": "a):"}, LLAMA)
    assert tokens(chosen) == tokens(labelled) == tokens(plain)
    assert learned(rejected, LLAMA) == ["b", "):", "</s>"]


@pytest.mark.parametrize(
    ("prompt", "completion", "pieces"),
    [
        ("Hello", " world", ["▁world", "</s>"]),
        ("Hello ", "world", ["world", "</s>"]),
        ("Hello  ", "world", ["world", "</s>"]),
        ("Hello\n", "\nworld", ["\n", "world", "</s>"]),
        ("wor", "ld", ["l", "d", "</s>"]),
        ("", "Hello", ["▁Hello", "</s>"]),
        ("Hello", "", None),
    ],
)
def test_the_prompt_keeps_its_own_tokens(prompt: str, completion: str, pieces: list[str] | None) -> None:
    row = {"prompt": prompt, "chosen": "x", "rejected": completion}
    datum = datums_from_row(row, LLAMA)[1]
    alone = LLAMA(prompt)["input_ids"]
    assert tokens(datum)[: len(alone)] == alone, "as when the model is asked"
    assert learned(datum, LLAMA) == (pieces or ["</s>"])


@given(
    st.lists(st.sampled_from([*WORDS, " ", "a", "é", "\n", "7", "(", "日", "."]), max_size=5).map("".join),
    st.lists(st.sampled_from([*WORDS, " ", "a", "é", "\n", "7", "(", "日", "."]), min_size=1, max_size=5).map("".join),
    st.sampled_from(sorted(TOKENIZERS)),
)
@example(" ", " ", "Llama 2, by Metaspace")
def test_the_tokens_spell_prompt_and_completion(prompt: str, completion: str, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = prompt or "("
    ids = tokens(datum_from_row({"prompt": prompt, "completion": completion}, tokenizer))
    alone = tokenizer(prompt)["input_ids"]
    assert ids[: len(alone)] == alone
    without_begin = ids[1:] if ids[0] == tokenizer.bos_token_id else ids  # behind <s> the decoder keeps a space
    text, said = tokenizer.decode(without_begin), prompt + completion + tokenizer.eos_token
    # To Metaspace a text with one space before it is the same text.
    same = (said, f" {said}", said.removeprefix(" ")) if name == "Llama 2, by Metaspace" else (said,)
    assert text in same


@pytest.mark.parametrize(
    ("row", "begins"),
    [
        ({"prompt": "<s>Hello", "completion": " world"}, 1),
        ({"prompt": "<s>", "completion": "Hello"}, 1),
        ({"prompt": "", "completion": "<s>Hello"}, 1),
        ({"prompt": "Hello", "completion": " world"}, 1),
    ],
)
def test_one_token_begins_a_text(row: dict[str, Any], begins: int) -> None:
    ids = tokens(datum_from_row(row, LLAMA))
    assert ids.count(1) == begins
    assert ids[0] == 1


@pytest.mark.parametrize("completion", ["world", "world</s>", "world</s>\n", "world</s> \n\n"])
def test_one_token_ends_a_completion(completion: str) -> None:
    datum = datum_from_row({"prompt": "Hello ", "completion": completion}, LLAMA)
    assert learned(datum, LLAMA) == ["world", "</s>"]


def test_thousands_of_ends_are_taken_off_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = type(LLAMA).decode
    monkeypatch.setattr(
        type(LLAMA), "decode", lambda self, ids, **options: [decoded.append(len(ids)), decode(self, ids, **options)][1]
    )
    datum = datum_from_row({"prompt": "Hello ", "completion": "world" + "</s>" * 3000}, LLAMA)
    monkeypatch.undo()
    assert learned(datum, LLAMA) == ["world", "</s>"]
    assert sum(decoded) < 10 * 3000


def test_an_end_inside_a_completion_stays() -> None:
    datum = datum_from_row({"prompt": "Hello ", "completion": "world</s>Hello"}, LLAMA)
    assert learned(datum, LLAMA)[-1] == "</s>"
    assert learned(datum, LLAMA).count("</s>") == 2


def test_a_boundary_that_no_tokens_respect_is_refused() -> None:
    from tokenizers import normalizers

    tokenizer = llama_tokenizer()
    inner = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("ab", "c"), inner])
    with pytest.raises(
        DataFileError, match="no tokens of this tokenizer spell the completion, which begins 'b', behind"
    ):
        datum_from_row({"prompt": "a", "completion": "b"}, tokenizer)
