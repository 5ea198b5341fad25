"""The final answer in a text, whole, in the LaTeX that math-verify reads whole.

math-verify reads `2x+3` outside dollar signs as 2, `1 1/2` as 1, `1e5` as 5e and `10 000` as 0. Here the whole answer is cut
out of the text, and forms that it does not know are written in ones that it does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

#: Delimiters of mathematics that may enclose a whole answer.
DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
#: Words that are mathematics: they join answers, or name functions.
_NOT_PROSE = {
    "and",
    "or",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
    "sqrt",
    "arctan",
    "arcsin",
    "arccos",
}
#: Short words that are answers rather than products of variables, which other bare words of up to three letters are.
_SHORT_WORDS = {"yes", "no", "odd"}
#: Units that may stand right behind a number or a brace, and those that need a space before them, as variables do not.
_UNITS = (
    "mm|cm|dm|km|mi|ft|yd|in|inch|inches|mg|kg|lb|lbs|oz|ml|mL|kL|hr|hrs|min|mins|sec|secs|ms|mph|kph|kmh|deg|degrees|rad|"
    "units?|cents?|dollars?|hours?|minutes?|seconds?|days?|meters?|feet|miles?|th|st|nd|rd"
)
_UNITS_AFTER_A_SPACE = "[A-Za-z]{2,}(?:(?:[ /]|[ ]per[ ])[A-Za-z]+)*|[msghLl]"
_TEXT_COMMANDS = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname)"
_NUMBER = r"(?:\d+(?:[.,]\d+)*|\.\d+)"
_ANSWER = re.compile(r"(?i)(?:####|\banswer\s*(?:is|:)[:\s]*)[ \t]*([^\n]*)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN = re.compile(r"[\s$,;\\()\[\]]*(?:(?:and|or)\s*)?(?:\\text\s*\{\s*(?:and|or)\s*\})?[\s$,;\\()\[\]]*")
_WORD = re.compile(r"[A-Za-z]{2,}")
_TEXT = re.compile(rf"{_TEXT_COMMANDS}\s*\{{([^{{}}]*)\}}")
_LAST_TEXT = re.compile(rf"\s*{_TEXT_COMMANDS}\s*\{{([^{{}}]*)\}}\s*(?:\^\s*\{{?\d\}}?)?\s*$")
_LAST_UNIT = re.compile(
    rf"((?<![\w.,])-?(?:{_NUMBER}|\\pi)|\}})(?:\s+(?:{_UNITS_AFTER_A_SPACE})|(?:{_UNITS}))(?:\^\{{?\d\}}?)?$"
)
_CLOCK = re.compile(r"^\d{1,2}:\d{2}(?:\s|$|[ap]\.?m|\\)")
_IN_A_BASE = re.compile(r"(?<![\\A-Za-z_{])[0-9A-Z]*\d[0-9A-Z]*_\{?\d")
_THOUSANDS = re.compile(r"(?<![\d.,\w])(\d{1,3}(?:(?:\\,|\\ |\\;|~|\{,\}|\\!,|,\\!| )\d{3})+)(?![\d.,]?\d)")
_MIXED = re.compile(
    r"(?<![\d.,/^_{\w])(-?)(\d+)(?:\s+|\s*\\ )(\d+)/(\d+)(?![\d/])|(-?)(?<![\d.^_\w])(\d+)\s*\\[dtc]?frac\s*"
    r"(?:\{(\d+)\}\s*\{(\d+)\}|(\d)(\d))(?!\d)"
)
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d+)(?![\w.])")
_REPEATING = re.compile(r"(?<![\d\w])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?(?!\d)")


@dataclass(frozen=True)
class Answer:
    """A final answer.

    text    for comparing as text: without layout, letters of words in lower case
    latex   for math-verify, to be read whole; None for words, which are compared as text only
    """

    text: str
    latex: str | None


def read_answer(text: str) -> Answer | None:
    """The answer that is one whole expression or text, such as a row's `answer`; None for an empty one."""
    content = _bare(text)
    if not content:
        return None
    return Answer(_as_text(content), _as_latex(content))


def final_answer(text: str) -> str | None:
    """The final answer that a text states: in its last box, after `####` or "answer is", the whole text, or its last expression.

    None where it holds no box and its mathematics stands between delimiters in prose, which math-verify reads itself.
    """
    stated = stated_answers(text)
    if _BOX.search(text):
        return stated[0]
    for candidate in stated:
        if "\n" not in candidate.strip() and not is_prose(_bare(candidate)):
            return candidate
    if text.count("$") > 1 or r"\(" in text or r"\[" in text:
        return None
    return _last_expression(text)


def stated_answers(text: str) -> list[str]:
    """What a text may state as its answer: its last box, or without a box what follows `####` or "answer is", and itself.

    Boxes that only a comma, "and" or "or" parts are one answer.
    """
    boxes = _boxes(text)
    if not boxes:
        return [*_ANSWER.findall(text)[-1:], text]
    if boxes[-1].stop > len(text):
        return [""]  # what a cut-off box would have held is unknown
    first = len(boxes) - 1
    while first and _BETWEEN.fullmatch(text[boxes[first - 1].stop : boxes[first].start]):
        first -= 1
    return [", ".join(text[box.start : box.stop].partition("{")[2][:-1] for box in boxes[first:])]


def _boxes(text: str) -> list[slice]:
    """Where each box begins and ends. The last may be cut off: it ends behind the text."""
    boxes: list[slice] = []
    for start in _BOX.finditer(text):
        if boxes and start.start() < boxes[-1].stop:
            continue  # a box in a box
        depth, at = 1, start.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        boxes.append(slice(start.start(), at + depth))
    return boxes


def is_prose(text: str) -> bool:
    """Whether words stand in a text beside units, names of functions, and `\\text{}`."""
    without = re.sub(r"\\[A-Za-z]+", " ", _TEXT.sub(" ", _LAST_UNIT.sub(r"\1", text)))
    return any(_is_word(chunk) for chunk in without.split())


def count_words(text: str) -> int:
    """How many words a text has, those in `\\text{}` included."""
    return len(_WORD.findall(re.sub(r"\\[A-Za-z]+", " ", _TEXT.sub(r" \1 ", text))))


def _is_word(chunk: str) -> bool:
    bare = chunk.strip(".,;:!?()*\"'`")
    return chunk in ("a", "I") or (bare.isalpha() and len(bare) > 1 and bare.lower() not in _NOT_PROSE)


def _last_expression(text: str) -> str | None:
    """The last run of chunks that are not words."""
    run: list[str] = []
    for chunk in reversed(text.split()):
        if _is_word(chunk) or (not any(letter.isalnum() for letter in chunk) and not run):
            if run:
                break
        else:
            run.insert(0, chunk)
    return " ".join(run).strip("*:;!?") or None


def _bare(text: str) -> str:
    """Without spaces, a full stop, emphasis and delimiters of mathematics around it, on one line."""
    text = " ".join(text.split()).strip("*").strip()
    for _ in range(3):
        text = re.sub(r"(?<![.\\])\.$", "", text).strip()
        for start, end in DELIMITERS:
            inner = text[len(start) : -len(end)]
            if text.startswith(start) and text.endswith(end) and inner and start not in inner and end not in inner:
                text = inner.strip()
        if boxed := re.fullmatch(r"\\(?:boxed|fbox)\s*\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}", text):
            text = boxed[1].strip()
    return text


def _as_text(content: str) -> str:
    """The form in which two answers that are the same text are equal."""
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[1]), content)
    text = _TEXT.sub(r" \1 ", re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = re.sub(r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|\\[,;:! ]|~|\\?\$", " ", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text.replace("\\%", "%").replace("°", r"^\circ"))
    text = re.sub(r"\s*([^\w\s\\])\s*", r"\1", " ".join(text.split())).strip().rstrip(".")
    if choice := re.fullmatch(r"\(([A-Za-z])\)", text):
        text = choice[1]
    return text.casefold() if _is_text(content) and _WORD.search(text) else text


def _is_text(content: str) -> bool:
    """Whether an answer is words: in `\\text{}`, or bare words that are no product of up to three variables."""
    if "\\" not in content and "=" not in content:
        words = _WORD.findall(content)
        return any(len(word) > 3 or word.lower() in _SHORT_WORDS for word in words if word.lower() not in _NOT_PROSE)
    rest = _TEXT.sub("", content)
    return rest != content and not any(letter.isalnum() for letter in rest)


def _as_latex(content: str) -> str | None:
    """The same answer in forms that math-verify knows; None for what it reads as only a part, or as letters."""
    latex = re.sub(r"\\(?:displaystyle|limits)(?![A-Za-z])|\\!", "", content.replace("°", r"^\circ")).replace("−", "-")
    latex = re.sub(r"\\(?:mathbf|boldsymbol|bm|vec|mathrm|mathit)\{(\w)\}", r"\1", latex)
    latex = re.sub(rf",?\s*{_TEXT_COMMANDS}\s*\{{\s*(?:and|or)\s*,?\s*\}}|,?\s+(?:and|or)\s+", ", ", latex)
    latex = re.sub(rf"^{_TEXT_COMMANDS}\{{[^{{}}]*\}}\s*=", "", latex)
    latex = re.sub(r"(^|(?<=[-=(\[,\s]))(?:\\?\$|[€£¥₹])\s*(?=[\d.])|(?<=\d)\s*[€£¥₹]", "", latex).strip()
    if (
        _is_text(_without_unit(latex))
        or _CLOCK.match(latex)
        or _IN_A_BASE.search(latex)
        or "\\pmod" in latex
        or "\\equiv" in latex
    ):
        return None
    latex = re.sub(r"\}\s*\\?%$", "}", _without_unit(_numbers(latex)).strip())  # it knows percent behind digits only
    if not latex or _TEXT.search(latex) or is_prose(latex):
        return None
    if "\\pm" in latex or "±" in latex:
        latex = latex.replace("±", "\\pm ")
        latex = ", ".join(re.sub(r"\\pm(?![A-Za-z])", sign, latex) for sign in "+-")
    return latex


def _without_unit(latex: str) -> str:
    """Without a unit at the end, unless the unit is all there is."""
    without = _LAST_TEXT.sub("", latex)
    if without == latex:
        without = _LAST_UNIT.sub(r"\1", latex)
    return without if without.strip() else latex


def _numbers(latex: str) -> str:
    """With thousands closed up, and mixed numbers, powers of ten as `1e5` and repeating decimals as LaTeX."""
    latex = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[1]), latex)
    latex = _REPEATING.sub(_repeating, latex)
    latex = _MIXED.sub(_mixed, latex)
    return _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", latex)


def _mixed(match: re.Match[str]) -> str:
    sign, whole, above, below = (
        part or ""
        for part in (
            match[1] or match[5],
            match[2] or match[6],
            match[3] or match[7] or match[9],
            match[4] or match[8] or match[10],
        )
    )
    if int(below) == 0:
        return match[0]
    return rf"{sign}\frac{{{int(whole) * int(below) + int(above)}}}{{{int(below)}}}"


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3]
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
