"""Tokens as HTML: any text is shown as text, and the page fetches and runs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook.inspect.token_page import (
    MAX_COLUMNS,
    Column,
    TokenSequence,
    token_page,
    token_sequence,
    token_view_html,
)
from lossbook.datums import Datum, ModelInput, datum_from_tokens_weights
from lossbook.datums.files.show import visible
from lossbook.trainer.model.tiny import build_tiny_tokenizer

NASTY = [
    "<script>alert(1)</script>",
    "</style><script>x</script>",
    '"><img src=x onerror=y>',
    "]]>",
    "-->",
    "&lt;",
    "'",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(NASTY)


class Page(HTMLParser):
    """The tags, attributes and shown tokens of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tokens: list[str] = []
        self.tips: list[str] = []
        self.titles: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        given = dict(attrs)
        self._inside = tag
        if given.get("class") == "tv-token":
            self.tokens.append("")
            self.tips.append(given.get("data-tip") or "")
            self._inside = "token"
        elif tag == "h3":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "token":
            self.tokens[-1] += data
        elif self._inside == "h3":
            self.titles[-1] += data


def colours(html: str, column: int) -> list[str | None]:
    """Each token's colour in a column."""
    spans = re.findall(r'<span class="tv-token"([^>]*)>', html)
    matches = [re.search(rf"--c{column}:([^;\"]+)", span) for span in spans]
    return [match and match[1] for match in matches]


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS, TEXTS)
def test_any_text_is_shown_as_text(texts: list[str], title: str, note: str) -> None:
    sequence = TokenSequence(
        title, texts, list(range(len(texts))), {"weight": [1.0] * len(texts), title: [0.5] * len(texts)}, note
    )
    page = Page(token_page(title, token_view_html([sequence])))
    assert page.tokens == [visible(text) or "▫" for text in texts]
    assert page.titles == [visible(title)]
    assert set(page.tags) <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h3",
        "p",
        "div",
        "section",
        "span",
        "input",
        "label",
    }
    assert {name for name, _ in page.attributes} <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "type",
        "id",
        "checked",
        "for",
        "style",
        "data-tip",
    }
    assert page.tags.count("style") == 1
    assert all(tip.startswith(f"token {index} ") for index, tip in enumerate(page.tips))


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    html = token_page("mine", token_view_html([TokenSequence("a", ["x"], [1])]))
    assert not re.search(r"https?:|url\(|@import|<script|<link| src=| href=", html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("weight", [0.0, 1.0, -0.5, None], [None, "rgba(33,110,190,0.75)", "rgba(225,105,10,0.38)", None]),
        ("ratio", [1.0, 2.0, 0.5, None], [None, "rgba(33,110,190,0.75)", "rgba(225,105,10,0.38)", None]),
        ("logprob", [0.0, -2.0, -4.0, None], [None, "rgba(225,105,10,0.38)", "rgba(225,105,10,0.75)", None]),
        (
            "loss",
            [float("nan"), float("-inf"), 0.0, 3.0],
            ["rgba(200,0,200,0.75)"] * 2 + [None, "rgba(33,110,190,0.75)"],
        ),
    ],
    ids=["around 0", "a ratio around 1", "never above 0", "NaN and infinity stand out"],
)
def test_colour_strength_is_the_distance_from_the_centre(
    column: str, values: list[float | None], expected: list[str | None]
) -> None:
    html = token_view_html([TokenSequence("a", list("wxyz"), [1, 2, 3, 4], {column: values})])
    assert colours(html, 0) == expected


def test_each_sequence_has_its_own_scale_and_says_how_strong_it_is_on_that_of_all() -> None:
    """The gradients of a rewarded answer stay visible beside those of one that is punished a hundred times harder."""
    rewarded = TokenSequence("rewarded", ["x", "y"], [1, 2], {"gradient": [-0.01, -0.005]})
    punished = TokenSequence("punished", ["x"], [1], {"gradient": [1.0]})
    html = token_view_html([rewarded, punished])
    assert colours(html, 0) == ["rgba(225,105,10,0.75)", "rgba(225,105,10,0.38)", "rgba(33,110,190,0.75)"]
    assert re.findall(r'<section class="tv-sequence" style="([^"]*)">', html) == ["--s0:1%", "--s0:100%"]
    ends = [re.findall(r'class="tv-own"[^>]*>([^<]*)<', line) for line in html.splitlines() if "tv-ranges" in line]
    assert ends == [["-0.01", "0"], ["0", "1"]]
    assert re.findall(r'<input type="checkbox"[^>]*>', html) == [
        '<input type="checkbox" class="tv-shared" id="tokens-shared">'
    ]
    assert (
        "checked>" in re.findall(r'<input type="checkbox"[^>]*>', token_view_html([rewarded, punished], shared=True))[0]
    )
    assert "checkbox" not in token_view_html([rewarded])  # nothing to share


def test_a_tokens_tooltip_has_its_id_text_and_every_number() -> None:
    columns = {"loss": [0.25], "weight": [2.0], "mine": [None], "logprob": [-1.23456]}
    page = Page(token_view_html([TokenSequence("a", [" hi\n"], [17], columns)]))
    assert page.tips == ["token 17 “ hi↵”\nweight 2\nlogprob -1.235 nats\nloss 0.25"]


def test_the_legend_shows_the_range_of_the_numbers_around_the_centre() -> None:
    def legend(column: str, *values: float | None) -> list[str]:
        html = token_view_html([TokenSequence("a", ["x"] * len(values), range(len(values)), {column: values})])
        return re.findall(r'<span class="tv-end"[^>]*>([^<]*)</span>', html)

    assert legend("logprob", -0.5, -4, None) == ["-4", "0"]
    assert legend("ratio", 0.5, 3.0, float("inf")) == ["0.5", "1", "3"]
    assert legend("weight", 0.0, 2.0) == ["0", "2"]
    assert legend("loss", None) == ["0"]


def test_a_note_stands_above_all() -> None:
    html = token_view_html([TokenSequence("a", ["x"], [1])], note="<b>dpo</b>")
    assert '<p class="tv-note">&lt;b&gt;dpo&lt;/b&gt;</p>' in html


def test_columns_are_offered_in_a_known_order_and_can_be_chosen() -> None:
    sequence = TokenSequence("a", ["x"], [1], {"mine": [1.0], "loss": [1.0], "weight": [1.0]})
    assert re.findall(r"<label[^>]*>([^<]*)</label>", token_view_html([sequence])) == ["weight", "loss", "mine"]
    html = token_view_html([sequence], ["loss", Column("mine", "nats", 1.0)], name="second")
    assert re.findall(r"<label[^>]*>([^<]*)</label>", html) == ["loss", "mine"]
    assert re.findall(r'id="([^"]*)"( checked)?', html) == [("second-0", " checked"), ("second-1", "")]
    assert colours(html, 1) == [None], "1 is the centre that was given"


def test_columns_of_another_length_and_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="a: loss has 1 entries for 2 tokens"):
        TokenSequence("a", ["x", "y"], [1, 2], {"loss": [1.0]})
    many = TokenSequence("a", ["x"], [1], {str(i): [1.0] for i in range(MAX_COLUMNS + 1)})
    with pytest.raises(ValueError, match="17 columns are more than the 16"):
        token_view_html([many])


class TestFromDatums:
    """token_sequence: a datum's positions tell about the tokens that follow."""

    def test_numbers_belong_to_the_token_that_a_position_predicts(self) -> None:
        tokenizer = build_tiny_tokenizer()
        ids = tokenizer("abc")["input_ids"]
        datum = datum_from_tokens_weights(ids, [1, 0, 2])
        datum = Datum(datum.model_input, {**datum.loss_fn_inputs, "advantages": [0.5, -0.5]})
        made = token_sequence(datum, tokenizer, "row", {"logprob": [-1.0, -2.0]}, "a note")
        assert list(made.texts) == ["a", "b", "c"]
        assert list(made.ids) == ids
        assert made.note == "a note"
        assert made.columns == {"weight": [None, 0, 2], "advantage": [None, 0.5, -0.5], "logprob": [None, -1.0, -2.0]}

    def test_a_character_of_several_tokens_is_shown_at_the_first(self) -> None:
        tokenizer = build_tiny_tokenizer()
        ids = tokenizer("é!")["input_ids"]
        assert list(token_sequence(datum_from_tokens_weights(ids, [1] * 3), tokenizer, "row").texts) == ["é", "", "!"]

    def test_a_datum_without_targets_is_its_tokens(self) -> None:
        tokenizer = build_tiny_tokenizer()
        made = token_sequence(Datum(ModelInput.from_ints(tokenizer("ab")["input_ids"])), tokenizer, "row")
        assert list(made.texts) == ["a", "b"]
