"""Tokenizers of GGUF files: the tokens are those of the model's own tokenizer, or the file is refused with the value named.

The rules below are written out as the models' tokenizer.json files and llama.cpp's src/llama-vocab.cpp publish them, and run
by the `regex` package, which shares nothing with the engine that the tokenizer runs. Vocabularies are trained without any
rule, so merges reach across every cut, and a cut in the wrong place gives other tokens.
"""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lossbook.datums.errors import ModelError
from lossbook.trainer.model.gguf.pre_tokenizers import REFUSED, RULES
from lossbook.trainer.model.gguf.tokenizer import read_tokenizer
from lossbook.trainer.model.load import load_model

gguf = pytest.importorskip("gguf")

# --- files ------------------------------------------------------------------------------------------------------------

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPECIAL = ["<|begin|>", "<|end|>", "<unk>", "<｜turn▁of▁user｜>"]
PIECES = [
    *("Hello", " world", "hello", "World", "aB", "cDe", "x", " y", "'s", "'RE", "'M", "'ll", " 'd", "’s", "IMGIMGABZ"),
    *("1", "12", "123", "1234", " 7", " 56789", "½", "٣", "x2", "<sentinel:3>", "_", "-", "/", " //", "$", "<=", "#a"),
    *(
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        " \n",
        "\n ",
        "!",
        "?!",
        "...",
        " (",
        ")",
        "。",
        "，",
        "：",
        "“",
        "।",
    ),
    *(
        "é",
        "É",
        "e\u0301",
        "ñ",
        "中文",
        "一",
        "かな",
        "カナ",
        "한글",
        "ㄅㄆ",
        "ㄱ",
        "нещо",
        "Ά",
        "कि",
        "เ",
        "🚀",
        "😶\u200d🌫️",
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.fixture(scope="module")
def trained() -> tuple[list[str], list[str]]:
    """Tokens by id, and merges: byte-level BPE of the pieces in many orders, learned without a rule."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = LETTERS
    lines = ["".join(PIECES[(i * step) % len(PIECES)] for i in range(len(PIECES))) for step in (1, 3, 5, 7, 11, 13)] * 3
    lines += ["".join(PIECES[i : i + 3]) for i in range(len(PIECES))] * 2
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def write(
    path: Path,
    tokens: list[str],
    merges: list[str] | None = None,
    *,
    kind: str = "gpt2",
    pre: str | None = "gpt-2",
    architecture: str = "llama",
    types: list[int] | None = None,
    scores: list[float] | None = None,
    numbers: dict[str, int | float] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **settings: Any,
) -> Path:
    """A GGUF file. numbers: of the architecture, such as block_count. settings: other keys under tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, number in (numbers or {}).items():
        add = writer.add_uint32 if isinstance(number, int) else writer.add_float32
        add(f"{architecture}.{name}", number)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types or [NORMAL] * len(tokens))
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for name, value in settings.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(tokens: list[str], merges: list[str], **options: Any) -> Any:
    """The same BPE in the `tokenizers` library, without a rule."""
    ids = {token: i for i, token in enumerate(tokens)}
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    return Tokenizer(models.BPE(ids, pairs, **options))


def pieces(text: str, rules: list[str]) -> list[str]:
    """Each rule cuts every piece into its matches and what lies between, as llama.cpp does."""
    parts = [text]
    for rule in rules:
        cut = []
        for part in parts:
            end = 0
            for match in regex.finditer(rule, part):
                cut += [part[end : match.start()], match.group()]
                end = match.end()
            cut.append(part[end:])
        parts = [part for part in cut if part]
    return parts


# --- the rules, as published ------------------------------------------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
CHAMELEON = [
    *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", r"\p{N}"),
    *(r"[\p{P}!-/:-@\[-`{-~]", GPT2),
]
YOUTU = [
    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
    GPT4O.replace(r"\p{N}{1,3}", r"\p{N}"),
]
GROUPS: dict[str, list[str]] = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert": [GPT2],
    "jais trillion granite-docling exaone4 mpt olmo": [GPT2],
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": [r"\p{N}", GPT2],
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": [LLAMA3],
    "dbrx smaug-bpe glm4 chatglm-bpe": [LLAMA3],
    "qwen2 deepseek-r1-qwen f2llmv2 kormo megrez stablelm2 hunyuan solar-open grok-2": [QWEN2],
    "minicpm5": [r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")],
    "jais-2": [
        LLAMA3.removesuffix(r"|\s+(?!\S)|\s+") + r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)"
        r"|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
    ],
    "qwen35": [QWEN35],
    "ufakzeka": [QWEN2.removeprefix("(?i:'s|'t|'re|'ve|'m|'ll|'d)|")],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "seed-coder": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "bailingmoe bailingmoe2 llada-moe": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "exaone-moe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m": [GPT4O],
    "tekken": [TEKKEN],
    "tiny_aya cohere2moe": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "youtu": YOUTU,
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": DEEPSEEK3,
    "spark2_5": [*DEEPSEEK3[:2], DEEPSEEK3[2].replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|"), r"\p{N}"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
    "poro-chat bloom gpt3-finnish": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "chameleon": CHAMELEON,
}
PUBLISHED = {name: rules for names, rules in GROUPS.items() for name in names.split()}
#: In these a text is brought into Unicode's composed form first.
COMPOSED = ["mpt", "olmo", "command-r", "qwen2", "deepseek-r1-qwen", "f2llmv2", "qwen35", "tiny_aya", "cohere2moe"]
#: ignore_merges in the tokenizer.json: a piece that is a token as a whole is that token.
WHOLE = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "minicpm5",
    "tekken",
    "youtu",
]
WHOLE.append("granite-embed-multi-97m")
#: A text begins with BOS where the file does not say.
BEGIN = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
]
#: Every other name that llama.cpp's load function compares with.
UNREAD = [
    "default",
    "deepseek-llm",
    "afmoe",
    "superbpe",
    "kimi-k2",
    "whitespace",
    "sarvam-moe",
    "granite-embed-multi-311m",
    "jina-v1-en",
    "jina-v2-code",
    "roberta-bpe",
]


def test_every_name_that_llama_cpp_knows_has_a_rule_or_a_reason_to_be_refused():
    assert set(RULES) == {*PUBLISHED, *NATIVE}
    assert set(REFUSED) == {*UNREAD, ""}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tokens_are_those_of_the_published_rule(name: str, trained: tuple[list[str], list[str]], tmp_path: Path):
    tokens, merges = trained
    tokens = [*tokens, "xHello", "aBx", "<|begin|>"]  # the first two no merge makes
    types = [NORMAL] * (len(tokens) - 1) + [CONTROL]
    file = write(tmp_path / "a.gguf", tokens, merges, pre=name, types=types, bos_token_id=len(tokens) - 1)
    tokenizer = read_tokenizer(file)
    reference = byte_level(tokens, merges, ignore_merges=name in WHOLE)

    def expected(text: str) -> list[int]:
        composed = unicodedata.normalize("NFC", text) if name in COMPOSED else text
        spelled = ["".join(part for part, _ in LETTERS.pre_tokenize_str(p)) for p in pieces(composed, PUBLISHED[name])]
        return [i for piece in spelled for i in reference.encode(piece).ids]

    @settings(max_examples=40, deadline=None)
    @given(text=TEXTS)
    def agree(text: str) -> None:
        if any(
            r"\b" in part for part in PUBLISHED[name]
        ):  # engines differ on whether a word ends before a number such as ½
            text = "".join(letter for letter in text if letter.isdecimal() or not letter.isnumeric())
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == expected(text)
        assert tokenizer.decode(ids) == (unicodedata.normalize("NFC", text) if name in COMPOSED else text)

    agree()
    for text in ("xHello", " 'RE aBx\n\n1234", "Hello world's 12345 1.\r\n\r\n  x"):
        assert tokenizer.encode(text, add_special_tokens=False) == expected(text)
    begins = tokenizer.encode("x")[0] == len(tokens) - 1
    assert begins == (name in BEGIN)


DIGITS = pre_tokenizers.Digits(individual_digits=True)
GPT2_WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
#: The pre_tokenizer of tokenizer.json files, where it is made of the library's own parts.
NATIVE: dict[str, list[Any]] = {
    "gpt-2": [GPT2_WHOLE],
    "smollm": [DIGITS, GPT2_WHOLE],
    "starcoder": [DIGITS, GPT2_WHOLE],
    "command-r": [DIGITS, GPT2_WHOLE],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        GPT2_WHOLE,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
    ],
}


@pytest.mark.parametrize("name", NATIVE)
def test_the_tokens_are_those_of_the_tokenizer_json(name: str, trained: tuple[list[str], list[str]], tmp_path: Path):
    reference = byte_level(*trained)
    reference.pre_tokenizer = pre_tokenizers.Sequence(NATIVE[name])
    if name == "command-r":
        reference.normalizer = normalizers.NFC()
    tokenizer = read_tokenizer(write(tmp_path / "a.gguf", *trained, pre=name))

    @settings(max_examples=100, deadline=None)
    @given(text=TEXTS)
    def agree(text: str) -> None:
        assert tokenizer.encode(text) == reference.encode(text).ids

    agree()


def test_smollm_splits_digits_before_words(trained: tuple[list[str], list[str]], tmp_path: Path):
    def cut(name: str, text: str) -> list[str]:
        tokenizer = read_tokenizer(write(tmp_path / "a.gguf", *trained, pre=name))
        parts = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [part.replace("Ċ", "\n").replace("Ġ", " ") for part, _ in parts]

    assert cut("smollm", "\n\n1") == ["\n\n", "1"]
    assert cut("gpt-2", "\n\n1") == ["\n", "\n", "1"]
    assert cut("smollm", " 123") == [" ", "1", "2", "3"]
    assert cut("dbrx", " 1234") == [" ", "123", "4"]


@pytest.mark.parametrize("name", [*UNREAD, "", None, "smolm", "qwen-99"])
def test_a_pre_tokenizer_without_a_rule_is_refused_by_name(name: str | None, trained, tmp_path: Path):
    file = write(tmp_path / "a.gguf", *trained, pre=name)
    with pytest.raises(
        ModelError, match=rf"^cannot rebuild the tokenizer of a\.gguf: tokenizer\.ggml\.pre is '{name or ''}': .*hub id"
    ) as e:
        read_tokenizer(file)
    assert "\n" not in str(e.value)
    assert ("Did you mean 'smollm'" in str(e.value)) == (name == "smolm")


# --- tokens that are looked for in the text, and what stands at its ends ----------------------------------------------


def with_special(trained: tuple[list[str], list[str]]) -> tuple[list[str], list[str], list[int]]:
    tokens, merges = trained
    added = [*SPECIAL, "<think>", "[PAD1]"]
    types = [NORMAL] * len(tokens) + [CONTROL, CONTROL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED]
    return [*tokens, *added], merges, types


def test_control_and_user_defined_tokens_stay_whole_and_unused_ones_are_text(trained, tmp_path: Path):
    tokens, merges, types = with_special(trained)
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = read_tokenizer(write(tmp_path / "a.gguf", tokens, merges, types=types))
    text = "x<|begin|> y<think>Hello<｜turn▁of▁user｜><unk>"
    whole = [ids[t] for t in ("<|begin|>", "<think>", "<｜turn▁of▁user｜>", "<unk>")]
    encoded = tokenizer.encode(text)
    assert [i for i in encoded if i in whole] == whole
    assert len(encoded) == len(whole) + 3
    assert tokenizer.decode(encoded) == text
    assert tokenizer.decode(encoded, skip_special_tokens=True) == "x y<think>Hello"
    assert ids["[PAD1]"] not in tokenizer.encode("[PAD1]")
    assert len(tokenizer) == len(tokens)


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_a_text_begins_and_ends_as_the_file_says(bos, eos, pre: str, trained, tmp_path: Path):
    tokens, merges, types = with_special(trained)
    begin, end = tokens.index("<|begin|>"), tokens.index("<|end|>")
    flags = {name: flag for name, flag in (("add_bos_token", bos), ("add_eos_token", eos)) if flag is not None}
    file = write(
        tmp_path / "a.gguf", tokens, merges, pre=pre, types=types, bos_token_id=begin, eos_token_id=end, **flags
    )
    tokenizer = read_tokenizer(file)
    plain = tokenizer.encode("Hello", add_special_tokens=False)
    starts = pre == "llama-bpe" if bos is None else bos
    assert tokenizer.encode("Hello") == [begin] * starts + plain + [end] * bool(eos)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")


def test_a_tokenizer_json_kept_in_the_file_is_taken_whole(trained, tmp_path: Path):
    own = byte_level(*trained)
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), LETTERS])
    own.decoder = decoders.ByteLevel()
    file = write(tmp_path / "a.gguf", *trained, pre="no such name")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_string("tokenizer.huggingface.json", own.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(trained[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_tokenizer(tmp_path / "b.gguf").encode("x--1 2") == own.encode("x--1 2").ids
    with pytest.raises(ModelError, match="no such name"):
        read_tokenizer(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "bert"},
            r"tokenizer\.ggml\.model is 'bert' \(WordPiece, which encoders have\); gpt2, llama and gemma4",
        ),
        ({"kind": "t5"}, r"tokenizer\.ggml\.model is 't5' \(a unigram model"),
        ({"kind": "rwkv"}, r"tokenizer\.ggml\.model is 'rwkv' \(RWKV's own\)"),
        ({"kind": "no_vocab"}, r"tokenizer\.ggml\.model is 'no_vocab' \(no tokenizer at all\)"),
        ({"kind": "gpt3"}, r"tokenizer\.ggml\.model is 'gpt3'.*Did you mean 'gpt2'"),
        ({"merges": None}, r"it has no tokenizer\.ggml\.merges"),
        ({"merges": ["q zzz"]}, r"merge 0, 'q' with 'zzz', is of parts that are not all tokens"),
        ({"types": [1, 1]}, r"it has \d+ tokens but 2 values in tokenizer\.ggml\.token_type"),
        ({"scores": [1.0]}, r"it has \d+ tokens but 1 values in tokenizer\.ggml\.scores"),
        ({"bos_token_id": 10**6}, r"tokenizer\.ggml\.bos_token_id is 1000000, but there are \d+ tokens"),
        ({"add_bos_token": True}, r"add_bos_token is true, but the file has no tokenizer\.ggml\.bos_token_id"),
        ({"add_eos_token": True}, r"add_eos_token is true, but the file has no tokenizer\.ggml\.eos_token_id"),
        ({"add_space_prefix": True}, r"tokenizer\.ggml\.add_space_prefix is true for a byte-level tokenizer"),
        ({"add_sep_token": True}, r"tokenizer\.ggml\.add_sep_token is true, which is not read for a decoder"),
        ({"added_tokens": ["<a>"]}, r"it has tokenizer\.ggml\.added_tokens"),
    ],
    ids=str,
)
def test_what_a_file_says_is_heeded_or_refused(change: dict[str, Any], message: str, trained, tmp_path: Path):
    options: dict[str, Any] = {"merges": trained[1], **change}
    file = write(tmp_path / "a.gguf", trained[0], **options)
    with pytest.raises(ModelError, match=f"^cannot rebuild the tokenizer of a.gguf: {message}"):
        read_tokenizer(file)


def test_two_tokens_of_one_spelling_are_refused(trained, tmp_path: Path):
    tokens = [*trained[0], trained[0][7]]
    with pytest.raises(ModelError, match=rf"tokens 7 and {len(tokens) - 1} are both"):
        read_tokenizer(write(tmp_path / "a.gguf", tokens, trained[1]))


# --- sentencepiece ----------------------------------------------------------------------------------------------------

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [
    "▁the",
    "▁end",
    "▁a",
    "nd",
    "▁an",
    "an",
    "▁and",
    "he",
    "▁t",
    "en",
    "▁e",
    "▁▁",
    "▁▁▁▁",
    "th",
    "the",
    "ee",
    "eed",
    "ed",
]
CHARACTERS = list("▁abcdehnt.,!12")
LLAMA2 = ["<unk>", "<s>", "</s>", *BYTES, *WORDS, *CHARACTERS]
LLAMA2_TYPES = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(WORDS) + len(CHARACTERS))
#: As sentencepiece writes them: the earlier merge has the higher score; characters come last.
LLAMA2_SCORES = [0.0] * 259 + [-float(i) for i in range(len(WORDS) + len(CHARACTERS))]
TEXT = st.text(alphabet="abcdehnt .,!12é\n", max_size=30)


def sentencepiece_bpe(text: str) -> list[str]:
    """Sentencepiece's BPE, written as its paper says: join the pair that makes the best piece, the leftmost first."""
    best = {
        piece: score for piece, score, kind in zip(LLAMA2, LLAMA2_SCORES, LLAMA2_TYPES, strict=True) if kind == NORMAL
    }
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(best[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in best]
        if not pairs:
            break
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [p for part in parts for p in ([part] if part in best else [f"<0x{b:02X}>" for b in part.encode()])]


def write_llama2(path: Path, **options: Any) -> Path:
    defaults = {"kind": "llama", "pre": "default", "types": LLAMA2_TYPES, "scores": LLAMA2_SCORES}
    return write(path, LLAMA2, **{**defaults, **options})


@pytest.mark.parametrize("prefix", [True, False, None])
def test_sentencepiece_merges_by_score_and_spells_the_rest_in_bytes(prefix: bool | None, tmp_path: Path):
    flags = {} if prefix is None else {"add_space_prefix": prefix}
    tokenizer = read_tokenizer(write_llama2(tmp_path / "a.gguf", **flags))
    space = "" if prefix is False else " "

    @settings(max_examples=200, deadline=None)
    @given(text=TEXT)
    def agree(text: str) -> None:
        ids = tokenizer.encode(text)
        pieces = sentencepiece_bpe(space + text) if text else []
        assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *pieces]
        assert tokenizer.decode(ids[1:]) == text

    agree()


def test_sentencepiece_puts_a_space_behind_special_tokens_too(tmp_path: Path):
    tokenizer = read_tokenizer(write_llama2(tmp_path / "a.gguf"))
    assert tokenizer.tokenize("the</s>end") == ["▁the", "</s>", "▁end"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


def test_phi3_takes_away_what_follows_a_special_token(tmp_path: Path):
    tokens, types = [*LLAMA2, "<|user|>"], [*LLAMA2_TYPES, CONTROL]
    options = {"kind": "llama", "pre": "default", "types": types, "scores": [*LLAMA2_SCORES, -1000.0]}
    cut = {}
    for architecture in ("phi3", "llama"):
        file = write(tmp_path / f"{architecture}.gguf", tokens, architecture=architecture, **options)
        tokenizer = read_tokenizer(file)
        cut[architecture] = tokenizer.convert_ids_to_tokens(tokenizer.encode("<|user|>\nthe")[1:])
    assert cut == {"phi3": ["<|user|>", "▁the"], "llama": ["<|user|>", "▁", "<0x0A>", "the"]}


def test_gemma_merges_in_the_order_of_its_pieces_and_puts_no_space_first(tmp_path: Path):
    from transformers import GemmaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, *WORDS, *CHARACTERS]
    types = [CONTROL, CONTROL, CONTROL, UNKNOWN] + [BYTE] * 256 + [NORMAL] * (len(WORDS) + len(CHARACTERS))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges: Any = generate_merges(vocabulary, {token: -i for token, i in vocabulary.items()})
    own = GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    spelled = [" " * len(token) if set(token) == {"▁"} and len(token) > 1 else token for token in tokens]
    file = write(
        tmp_path / "a.gguf",
        spelled,
        kind="llama",
        pre="default",
        architecture="gemma2",
        types=types,
        scores=[-1.0 * (i % 7) for i in range(len(tokens))],
        bos_token_id=2,
        eos_token_id=1,
        unknown_token_id=3,
        add_space_prefix=False,
    )
    tokenizer = read_tokenizer(file)

    @settings(max_examples=100, deadline=None)
    @given(text=TEXT)
    def agree(text: str) -> None:
        assert tokenizer.encode(text) == own.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)[1:]) == text

    agree()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "llama-bpe"}, r"tokenizer\.ggml\.pre is 'llama-bpe', but a sentencepiece model has no pre-tokenizer"),
        ({"scores": None}, r"it has no tokenizer\.ggml\.scores and no tokenizer\.ggml\.merges"),
        ({"scores": [-1000.0] * len(LLAMA2)}, "it has the same score for every token"),
        ({"remove_extra_whitespaces": True}, r"tokenizer\.ggml\.remove_extra_whitespaces is true"),
        ({"precompiled_charsmap": [1, 2, 3]}, r"it has a tokenizer\.ggml\.precompiled_charsmap"),
    ],
    ids=str,
)
def test_a_sentencepiece_model_that_is_not_known_is_refused(change: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ModelError, match=message):
        read_tokenizer(write_llama2(tmp_path / "a.gguf", **change))


# --- whole files ------------------------------------------------------------------------------------------------------

WIDTH = 32
NUMBERS: dict[str, int | float] = {
    "context_length": 64,
    "embedding_length": WIDTH,
    "block_count": 2,
    "feed_forward_length": 48,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "rope.dimension_count": 16,
    "rope.freq_base": 10000.0,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def weights(rows: int, layers: int = 2) -> dict[str, np.ndarray]:
    """A small Llama's, by the names that GGUF files give them."""
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (rows, WIDTH), "output_norm.weight": (WIDTH,)}
    for i in range(layers):
        square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        others = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": (48, WIDTH), "ffn_up": (48, WIDTH)}
        layer = {**square, **others, "ffn_down": (WIDTH, 48)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_loaded_file_has_the_tokenizer_that_the_file_describes(kind: str, trained, tmp_path: Path):
    if kind == "gpt2":
        tokens, merges, types = with_special(trained)
        ids = {"bos_token_id": tokens.index("<|begin|>"), "eos_token_id": tokens.index("<|end|>")}
        options: dict[str, Any] = {"merges": merges, "types": types, "pre": "smollm", "add_bos_token": True, **ids}
        text = "<|begin|>Hello  world's 123\n\n1<think>中文e\u0301<|end|>"
    else:
        tokens = LLAMA2
        options = {"kind": kind, "pre": "default", "types": LLAMA2_TYPES, "scores": LLAMA2_SCORES}
        text = "<s>  the end and, é</s>then"
    file = write(tmp_path / "a.gguf", tokens, **options, numbers=NUMBERS, tensors=weights(len(tokens)))
    expected = read_tokenizer(file)
    for _ in range(2):  # converted, then from the cache
        model = load_model(str(file), device="cpu")
        assert model.vocab_size == len(tokens)
        assert model.tokenizer.encode(text) == expected.encode(text)
        assert model.tokenizer.decode(expected.encode(text)) == expected.decode(expected.encode(text))
        roles = ("bos_token", "eos_token", "unk_token", "pad_token")
        assert [getattr(model.tokenizer, name) for name in roles] == [getattr(expected, name) for name in roles]


def test_a_copy_that_an_earlier_version_converted_is_not_taken(trained, tmp_path: Path, cache: Path):
    options: dict[str, Any] = {"pre": "smollm", "numbers": NUMBERS, "tensors": weights(len(trained[0]))}
    file = write(tmp_path / "a.gguf", *trained, **options)
    load_model(str(file), device="cpu")
    [copied] = (cache / "gguf").iterdir()
    copied.rename(copied.with_name(copied.name.removesuffix("-2")))  # as the first version named it
    (copied.with_name(copied.name.removesuffix("-2")) / "tokenizer.json").write_text("not read")
    assert load_model(str(file), device="cpu").tokenizer.encode("\n\n1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": {**NUMBERS, "block_count": 1}}, r"says llama\.block_count = 1, but has the tensors of 2 layers"),
        ({"numbers": {**NUMBERS, "block_count": 3}}, r"says llama\.block_count = 3, but has the tensors of 2 layers"),
        ({"numbers": {**NUMBERS, "block_count": 10**6}}, r"block_count = 1000000, but has the tensors of 2 layers"),
        ({"rows": -1}, r"has \d+ tokens, but an embedding of \d+ rows"),
        ({"without": "blk.1.ffn_up.weight"}, r"lacks 1 parameters, which would stay random: .*layers\.1\.mlp\.up_proj"),
        ({"pre": "afmoe"}, r"cannot rebuild the tokenizer of a\.gguf: tokenizer\.ggml\.pre is 'afmoe'"),
    ],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused_and_leaves_no_copy(
    change: dict[str, Any], message: str, trained, tmp_path: Path, cache: Path
):
    change = dict(change)
    tensors = weights(len(trained[0]) + change.pop("rows", 0))
    tensors.pop(change.pop("without", ""), None)
    file = write(tmp_path / "a.gguf", *trained, **{"numbers": NUMBERS, "tensors": tensors, **change})
    with pytest.raises(ModelError, match=message) as e:
        load_model(str(file), device="cpu")
    assert "\n" not in str(e.value)
    assert not list((cache / "gguf").iterdir())


def test_the_document_names_every_pre_tokenizer_that_is_read_and_every_one_that_is_refused():
    text = (Path(__file__).parents[3] / "docs" / "gguf.md").read_text(encoding="utf-8")
    read = text.split("## Pre-tokenizers")[1].split("\nRefused:\n")[0]
    assert set(regex.findall("`([^`]+)`", read)) == set(RULES)
    rows = regex.findall(r"^\| `?([^`|\n]+?)`? \| (.+) \|$", text.split("\nRefused:\n")[1], flags=regex.MULTILINE)
    assert dict(rows[1:]) == {name or "none": reason for name, reason in REFUSED.items()}
