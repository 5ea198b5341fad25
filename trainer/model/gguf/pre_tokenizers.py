"""The rules by which byte-level tokenizers cut a text before merging, by the names that GGUF files give them.

`tokenizer.ggml.pre` is a name that llama.cpp's converter writes for each tokenizer.json it knows (get_vocab_base_pre), and
llama.cpp's src/llama-vocab.cpp says what the name means. A rule here is the tokenizer.json's own where llama.cpp adapts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: GPT-2's rule; `\s+` at its end takes the last space before a word, which the part before leaves.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(
    digits: str,
    *,
    start: str = f"{_CONTRACTIONS}|",
    marks: str = "",
    end: str = r"[\r\n]*",
    spaces: str = _SPACES,
) -> str:
    """Llama 3's rule: a word with one sign before it, digits, signs with line ends behind them, spaces."""
    words = rf"{start}[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}{marks}]+"
    return rf"{words}|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+{end}|{spaces}"


def _cased_words(digits: str, contractions: str) -> str:
    """GPT-4o's rule: a word ends where a small letter is followed by a capital one."""
    sign = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return (
        f"{sign}{upper}*{lower}+{contractions}|{sign}{upper}+{lower}*{contractions}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


def _joined_marks(end: str) -> str:
    """DeepSeek-V3's last rule: an ASCII sign keeps the Latin letters behind it, a letter its combining marks."""
    return (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
        rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+{end}|\s+(?!\S)|\s+"
    )


_LLAMA3 = _words(_THREE_DIGITS)
_QWEN2 = _words(_DIGIT)
_GPT4O = _cased_words(_THREE_DIGITS, f"{_CONTRACTIONS}?")
_CHINESE_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (_THREE_DIGITS, _CHINESE_AND_KANA, _joined_marks(r"[\r\n]*|\s*[\r\n]+"))
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_JAIS2_RUNS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2_SPACES = rf"\s*[\r\n]+|{_JAIS2_RUNS}|\s{{1,2}}(?!\S)|\s"
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|" + _CHINESE_AND_KANA
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_DEEPSEEK_SCRIPTS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_FALCON_SIGNS = r"[\p{P}$+<=>^~|`]+"
_CHAMELEON = (r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )")


@dataclass(frozen=True)
class Rule:
    r"""How a text is cut.

    patterns       applied one after the other: each cuts every piece into what it matches and what lies between
    of_letters     patterns applied to GPT-2's letters for bytes, of which some, such as ½, are numbers
    nfc            whether text is brought into Unicode's composed form first
    ignore_merges  whether a piece that is a token as a whole is taken as it is, merges or not
    add_bos        whether texts begin with the beginning-of-sequence token where the file does not say
    """

    patterns: tuple[str, ...]
    of_letters: tuple[str, ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def apply_to(self, tokenizer: Any) -> None:
        """Set normalizer and pre-tokenizer of a `tokenizers.Tokenizer`."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        if self.nfc:
            tokenizer.normalizer = normalizers.NFC()
        before, after = (
            [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
            for patterns in (self.patterns, self.of_letters)
        )
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, letters, *after])


def _table() -> dict[str, Rule]:
    llama3 = Rule((_LLAMA3,), ignore_merges=True, add_bos=True)
    digits_first = Rule((_DIGIT, _GPT2))
    groups: list[tuple[str, Rule]] = [
        ("gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert", Rule((_GPT2,))),
        ("jais trillion granite-docling exaone4", Rule((_GPT2,))),
        ("mpt olmo", Rule((_GPT2,), nfc=True)),  # GPT-NeoX's tokenizer
        ("smollm starcoder refact codeshell exaone minerva-7b mellum2", digits_first),
        ("command-r", Rule((_DIGIT, _GPT2), nfc=True)),
        ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", llama3),
        ("dbrx smaug-bpe glm4 chatglm-bpe", Rule((_LLAMA3,))),
        ("minicpm5", Rule((_THREE_DIGITS, _words(r"\p{N}+")), ignore_merges=True)),
        ("jais-2", Rule((_words(_THREE_DIGITS, spaces=_JAIS2_SPACES),))),
        ("qwen2 deepseek-r1-qwen f2llmv2", Rule((_QWEN2,), nfc=True)),
        ("kormo megrez stablelm2 hunyuan solar-open grok-2", Rule((_QWEN2,))),
        ("qwen35", Rule((_words(_DIGIT, marks=r"\p{M}"),), nfc=True)),
        ("ufakzeka", Rule((_words(_DIGIT, start=""),))),
        ("laguna", Rule((r"[^\n]+|[\n]+", _QWEN2))),
        ("seed-coder", Rule((_words(_DIGIT, end=""),))),
        ("bailingmoe bailingmoe2 llada-moe", Rule((_BAILING,))),
        ("exaone-moe", Rule((_EXAONE_MOE,))),
        ("gpt-4o llama4 kanana2 talkie minimax-m2", Rule((_GPT4O,))),
        ("granite-embed-multi-97m", Rule((_GPT4O,), ignore_merges=True)),
        ("tekken", Rule((_cased_words(_DIGIT, ""),), ignore_merges=True, add_bos=True)),
        ("tiny_aya cohere2moe", Rule((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O), nfc=True)),
        ("youtu", Rule((_YOUTU_SCRIPTS, _cased_words(_DIGIT, f"{_CONTRACTIONS}?")), ignore_merges=True)),
        ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Rule(_DEEPSEEK3)),
        ("spark2_5", Rule((_THREE_DIGITS, _CHINESE_AND_KANA, _joined_marks(r"|[\r\n]"), _DIGIT))),
        ("deepseek-coder", Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_SCRIPTS, _DIGIT))),
        ("falcon", Rule((_FALCON_SIGNS, _GPT2), of_letters=(r"\p{N}+", r"[0-9][0-9][0-9]"))),
        ("poro-chat bloom gpt3-finnish", Rule((_BLOOM,))),
        ("viking", Rule((_BLOOM, _DIGIT))),
        ("chameleon", Rule((*_CHAMELEON, _DIGIT, r"[\p{P}!-/:-@\[-`{-~]", _GPT2), add_bos=True)),
    ]
    return {name: rule for names, rule in groups for name in names.split()}


#: By the name in `tokenizer.ggml.pre`.
RULES: dict[str, Rule] = _table()

#: Names that llama.cpp knows and that are not read here, and why.
REFUSED: dict[str, str] = {
    "": "the file does not name its pre-tokenizer, so it was written before llama.cpp recorded it",
    "default": "'default' says that the converter did not recognise the pre-tokenizer",
    "deepseek-llm": "its rule is a list of letters of one version of Unicode",
    "afmoe": "its rule counts digits from the right",
    "superbpe": "its rule cuts between two digits",
    "kimi-k2": "its tokenizer has ranks in place of merges",
    "whitespace": "its tokens are not of bytes",
    "sarvam-moe": "its tokens are not of bytes",
    "granite-embed-multi-311m": "its tokens are not of bytes",
    "jina-v1-en": "it belongs to an encoder",
    "jina-v2-code": "it belongs to an encoder",
    "roberta-bpe": "it belongs to an encoder",
}
