"""A card's formula, which is plain text, as LaTeX: `-log σ(beta Δ)` as `-\\log\\sigma(\\beta\\Delta)`.

The formula stays plain in the loss's docstring, where everybody can read it. Words keep being words: a formula is math up to its
first clause in words, such as ", where r = ...", and there math stands between words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

#: Log-probabilities by their names as inputs.
LOGPROBS = {
    "logprobs": r"\log\pi",
    "sampling_logprobs": r"\log\pi_{\text{sampling}}",
    "ref_logprobs": r"\log\pi_{\text{ref}}",
    "teacher_logprobs": r"\log\pi_{\text{teacher}}",
}
_GREEK = {
    **{name: f"\\{name}" for name in ("alpha", "beta", "gamma", "delta", "epsilon", "lambda", "tau", "phi")},
    **{"α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "Δ": r"\Delta", "ε": r"\epsilon"},
    **{"λ": r"\lambda", "τ": r"\tau", "φ": r"\varphi", "σ": r"\sigma", "π": r"\pi"},
}
_FUNCTIONS = {name: f"\\{name}" for name in ("log", "exp", "min", "max", "cos")}
_FUNCTIONS |= {name: rf"\mathrm{{{name}}}" for name in ("clip", "clamp", "sg", "KL", "lo", "mean", "conj", "Re", "Im")}
_FUNCTIONS |= {"log2": r"\log_2", "softmax": r"\mathrm{softmax}"}
_APPLIED = {"clip", "clamp", "sg", "KL", "lo", "conj", "softmax"}
_SIGNS = {
    **{
        "||": r"\,\|\,",
        ">=": r"\ge",
        "<=": r"\le",
        "≤": r"\le",
        "≠": r"\ne",
        "±": r"\pm",
        "·": r"\cdot",
        "²": "^2",
        "½": r"\tfrac{1}{2}",
    },
    **{sign: sign for sign in ("=", "+", "-", "<", ">", "/", ",", "^", "*")},
}
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<quoted>`[^`]*`)|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"
    r"|(?P<sign>[²½])|(?P<word>[^\W\d²½]+(?:-[^\W\d²½]+)+|[^\W²½]+'s?|[^\W²½]+)|(?P<other>\|\||>=|<=|.)"
)
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
#: Where a formula goes on in words.
_CLAUSE = re.compile(r", (?=[a-z]{3,} )|\.? (?:where|with|times|per|over|for) |[:;] |\. (?=[A-Z])")
#: Words after which a lone letter is a symbol, not an article.
_VERBS = {"and", "is", "are", "or"}
_MOST_WORDS = 4
#: Characters of math that stand in a line of text; longer math, which is not broken, stands by itself.
_LONGEST_INLINE = 24


@dataclass(frozen=True)
class Formula:
    """A formula's math, "" where it is words; and the words after it, in which math stands between dollars."""

    math: str
    words: str


@dataclass
class _Part:
    """A piece of a formula: a symbol, a word, a sign, what stands in brackets, or in braces: an index or exponent."""

    kind: str
    tex: str
    spaced: bool = False
    inside: list[_Part] = field(default_factory=list)


def formula_in_math(formula: str, names: Collection[str] = ()) -> Formula:
    """A card's formula as math, with its clauses in words.

    names: of the loss's settings and tensors; these are set as code. Raises nothing: what it does not know stays a word.
    """
    text = formula.removesuffix(".")
    clause = next((m for m in _CLAUSE.finditer(text) if _is_balanced(text[: m.start()])), None)
    head = text[: clause.start()] if clause else text
    parts = _parts(head, names)
    words = sum(part.kind == "word" for part in parts)
    if words > _MOST_WORDS or words >= len(parts) - words:
        return Formula("", _in_words(_parts(text, names)))
    rest = "" if clause is None else text[clause.start() :].lstrip(",:;. ")
    return Formula(_tex(parts), _in_words(_parts(rest, names)))


def _is_balanced(text: str) -> bool:
    return all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}")) and text.count("|") % 2 == 0


def _parts(text: str, names: Collection[str]) -> list[_Part]:
    tokens = list(_TOKEN.finditer(text))
    made, _ = _group(tokens, 0, "", names)
    return _with_fractions(made)


def _group(tokens: list[re.Match[str]], at: int, end: str, names: Collection[str]) -> tuple[list[_Part], int]:
    parts: list[_Part] = []
    spaced = False
    while at < len(tokens) and tokens[at][0] != end:
        token = tokens[at]
        at += 1
        if token["space"]:
            spaced = True
            continue
        if token[0] in _CLOSING:
            inside, at = _group(tokens, at, _CLOSING[token[0]], names)
            below = bool(parts) and not spaced and parts[-1].tex.endswith("_")
            kind = "script" if below or token[0] == "{" else "group"
            parts.append(_Part(kind, token[0], spaced, _with_fractions(inside)))
            at += 1
        else:
            after = next((one[0] for one in tokens[at:] if not one["space"]), "")
            parts.append(_symbol(token, after, spaced, names))
        spaced = False
    return parts, at


def _symbol(token: re.Match[str], after: str, spaced: bool, names: Collection[str]) -> _Part:
    text = token[0]
    if token["number"]:
        return _Part("math", text, spaced)
    if token["sign"] or token["other"]:
        return _Part("sign", _SIGNS.get(text, text), spaced) if text in _SIGNS else _Part("word", text, spaced)
    base, _, index = text.partition("_")
    below = f"_{{{index}}}" if len(index) == 1 else rf"_{{\text{{{index}}}}}" if index else ""
    if after in ("{", "(") and text.endswith("_"):  # what stands in brackets is below it
        below = "_"
    if text in LOGPROBS or base in LOGPROBS:
        return _Part("math", LOGPROBS.get(text) or LOGPROBS[base] + below, spaced)
    if base in _GREEK or base == "Σ":
        return _Part("function" if base == "Σ" else "math", _GREEK.get(base, r"\sum") + below, spaced)
    if text in names:
        return _Part("name", rf"\mathtt{{{text}}}".replace("_", r"\_"), spaced)
    if text == "logprob":
        return _Part("math", LOGPROBS["logprobs"], spaced)
    if base in _FUNCTIONS and (index or _is_applied(base, after)):
        return _Part("function", _FUNCTIONS[base] + below, spaced)
    letter = re.fullmatch(r"([A-Za-z])(\d?)", base)
    if letter and not (text == "a" and _follows_an_article(after)):
        return _Part("math", letter[1] + (f"_{{{letter[2]}}}" if letter[2] else below), spaced)
    if len(index) == 1:
        return _Part("math", rf"\text{{{base}}}{below}", spaced) if base else _Part("sign", below, spaced)
    return _Part("word", text, spaced)


def _is_applied(function: str, after: str) -> bool:
    if function == "mean":
        return after == "A" or after.startswith("logprob")
    return function not in _APPLIED or after == "("


def _follows_an_article(after: str) -> bool:
    return after == "KL" or (re.fullmatch(r"[a-z]{2,}.*", after) is not None and after not in {*_VERBS, *_FUNCTIONS})


def _with_fractions(parts: list[_Part]) -> list[_Part]:
    """`x / y` as a fraction, where both are a symbol, a number or brackets, and x is not what a function is of."""
    made: list[_Part] = []
    at = 0
    while at < len(parts):
        part = parts[at]
        before = made[-1] if made else None
        after = parts[at + 1] if at + 1 < len(parts) else None
        whole = before is not None and not (len(made) > 1 and made[-2].kind == "function" and before.kind == "group")
        if part.tex == "/" and before and after and whole and {before.kind, after.kind} <= {"math", "group", "name"}:
            made[-1] = _Part("math", rf"\frac{{{_bare(before)}}}{{{_bare(after)}}}", before.spaced)
            at += 2
        else:
            made.append(part)
            at += 1
    return made


def _bare(part: _Part) -> str:
    return _tex(part.inside) if part.kind == "group" and part.tex == "(" else _tex([part])


def _tex(parts: list[_Part]) -> str:
    """Parts as one formula; words stand in it as text."""
    pieces: list[str] = []
    power = ""
    for at, part in enumerate(parts):
        follows = parts[at + 1] if at + 1 < len(parts) else None
        piece = _piece(part, parts[at - 1] if at else None, follows)
        if power:
            if piece == "-":  # the sign of an exponent, such as p^-alpha, belongs to it
                power += "-"
                continue
            piece, power = f"{power}{piece}}}", ""
        elif piece == "^":
            power = "^{"
            continue
        pieces.append(piece)
    joined = re.sub(r" (?=[\^_,]|$)|(?<=_) ", "", " ".join(pieces))
    return re.sub(r"\\text\{[^{}]*\}(?: \\text\{\s[^{}]*\})+", _one_text, joined)


def _one_text(words: re.Match[str]) -> str:
    return re.sub(r"\} \\text\{", "", words[0])


def _piece(part: _Part, before: _Part | None, after: _Part | None) -> str:
    if part.kind == "script":
        return f"{{{_tex(part.inside)}}}" if part.tex == "{" else f"{{({_tex(part.inside)})}}"
    if part.kind == "group":
        left, right, inside = part.tex, _CLOSING[part.tex], _tex(part.inside)
        high = r"\frac" in inside or r"\sum" in inside
        return rf"\left{left}{inside}\right{right}" if high else f"{left}{inside}{right}"
    if part.kind == "word":
        lead = " " if part.spaced and before else ""
        trail = " " if after and after.spaced and after.kind != "word" else ""
        return rf"\text{{{lead}{part.tex}{trail}}}"
    return rf"{part.tex}\," if part.kind == "name" and after and after.kind != "sign" else part.tex


def _in_words(parts: list[_Part]) -> str:
    """Parts as a sentence, with dollars around its math; math too long for a line stands by itself."""
    return re.sub(r"\n[.,:;]? ", "\n", "".join(_runs(parts))).strip()


def _runs(parts: list[_Part]) -> Iterator[str]:
    run: list[_Part] = []
    for part in [*parts, _Part("word", "")]:
        if part.tex == "/" and not run:  # between words
            part = _Part("word", "/", part.spaced)
        if part.kind != "word" and (part.tex != "," or part.inside):
            run.append(part)
            continue
        if run:
            yield _run(run)
        run = []
        yield f"{' ' if part.spaced else ''}{part.tex}"


def _run(run: list[_Part]) -> str:
    lead = " " if run[0].spaced else ""
    if all(part.kind == "group" and all(one.kind == "word" for one in part.inside) for part in run):
        return lead + "".join(f"{part.tex}{_in_words(part.inside)}{_CLOSING[part.tex]}" for part in run)
    tex = _tex(run)
    if len(run) == 1 and run[0].kind == "name":
        name = re.sub(r"\\mathtt|[{}\\]", "", tex)
        return f"{lead}`{name}`" if "_" in name else f"{lead}{name}"
    return f"\n\n$$\n{tex}\n$$\n\n" if _length(tex) > _LONGEST_INLINE else f"{lead}${tex}$"


def _length(tex: str) -> int:
    """About how many characters a formula shows."""
    return len(re.sub(r"\\[a-z]+|[{}\\ ]", "x", tex).replace("x", "")) + len(re.findall(r"\\[a-z]+", tex))
