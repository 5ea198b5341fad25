"""A report in a real browser: no errors, no requests, views that change what is seen, at every width and in the dark.

`make test-browser` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import sft
from lossbook.cookbook.cli import main
from lossbook.cookbook.sft import SFTConfig

pytestmark = [pytest.mark.slow, pytest.mark.browser]

#: Width, height, and colour scheme.
VIEWS = {"desktop": (1200, 900, "light"), "desktop dark": (1200, 900, "dark"), "phone": (390, 844, "light")}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real run."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    data = folder.parent / "data.jsonl"
    data.write_text('{"prompt": "2 + 3 = <script>alert(1)</script>", "completion": "5, that is five"}\n' * 8)
    sft.main(SFTConfig(data=data, out=folder, steps=12, eval_every=4, all_weights=True, learning_rate=1e-2))
    assert main(["runs", "report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(params=VIEWS)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The page at one width; at the end nothing may have gone wrong in it."""
    width, height, scheme = VIEWS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened = context.new_page()
    trouble: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    opened.on("request", lambda asked: requests.append(asked.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert trouble == []
    assert requests == [report.as_uri()]


def colours(page: Any) -> list[str]:
    """The background of each token that is seen."""
    script = "tokens => tokens.filter(t => t.offsetParent).map(t => getComputedStyle(t).backgroundColor)"
    return page.locator(".tv-token").evaluate_all(script)


def test_the_page_fits_its_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_another_column_gives_other_colours(page: Any) -> None:
    page.locator(".step:visible label", has_text="logprob").first.click()
    by_logprob = colours(page)
    page.locator(".step:visible label", has_text="weight").click()
    by_weight = colours(page)
    page.locator(".steps button").first.click()
    assert len(set(colours(page))) == 2  # the column stays chosen at another step
    assert len(set(by_logprob)) > 2  # tokens differ in their logprobs
    assert len(set(by_weight)) == 2  # none for the prompt, one for what is learned
    assert by_logprob != by_weight


def test_another_step_shows_other_sequences(page: Any) -> None:
    seen = page.locator(".tv-sequence:visible h3")
    assert all(title.startswith("step 12:") for title in seen.all_inner_texts())
    last = colours(page)
    page.locator(".steps button", has_text="1").first.click()
    assert all(title.startswith("step 1:") for title in seen.all_inner_texts())
    assert len(seen.all_inner_texts()) == 2
    assert colours(page) != last


def test_the_pointer_shows_a_curves_values_and_a_tokens_numbers(page: Any) -> None:
    chart = page.locator(".chart").first
    chart.locator("svg:visible").hover()
    assert "step " in chart.locator("output").inner_text()
    assert "nll" in chart.locator("output").inner_text()
    token = page.locator(".tv-sequence:visible .tv-token").last
    token.hover()
    assert "none" not in token.evaluate("token => getComputedStyle(token, '::after').content")


def test_a_tokens_numbers_stay_inside_the_window(page: Any) -> None:
    tokens = page.locator(".step:visible .tv-token")
    rights = tokens.evaluate_all("tokens => tokens.map(token => token.getBoundingClientRect().right)")
    tokens.nth(rights.index(max(rights))).hover()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_switch_gives_all_sequences_one_colour_scale_and_keeps_it_at_another_step(page: Any) -> None:
    own = colours(page)
    page.locator(".step:visible label.tv-scale").click()
    shared = colours(page)
    assert len(own) == len(shared)
    page.locator(".steps button").first.click()
    assert page.locator(".step:visible .tv-shared").is_checked()
    assert page.locator(".step:visible .tv-ranges").first.is_hidden()
    page.locator(".step:visible label.tv-scale").click()
    assert page.locator(".step:visible .tv-ranges").first.is_visible()


def test_a_button_draws_a_curve_on_a_logarithmic_axis_and_back(page: Any) -> None:
    """The run learns its one row by heart: nll falls over more than a decade."""
    chart = page.locator(".chart:has(button.log)").first
    before = chart.locator("svg:visible").get_attribute("data-scale")
    chart.locator("button.log").click()
    after = chart.locator("svg:visible").get_attribute("data-scale")
    assert {before, after} == {"log", "linear"}
    chart.locator("button.log").press("Enter")
    assert chart.locator("svg:visible").get_attribute("data-scale") == before


def test_the_arrow_keys_show_what_the_pointer_shows(page: Any) -> None:
    chart = page.locator(".chart").first
    chart.locator("svg:visible").focus()
    page.keyboard.press("Home")
    assert "step 1\n" in chart.locator("output").inner_text()
    page.keyboard.press("ArrowRight")
    assert "step 2\n" in chart.locator("output").inner_text()
    page.keyboard.press("Escape")
    assert chart.locator("output").is_hidden()
    text = page.locator(".step:visible .tv-text").first
    text.focus()
    page.keyboard.press("End")
    token = text.locator(".tv-token.tv-current")
    assert "none" not in token.evaluate("token => getComputedStyle(token, '::after').content")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_on_paper_everything_is_open(page: Any) -> None:
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_text_can_be_read_on_its_background(page: Any) -> None:
    """Dark on light or light on dark, never the like on the like; 4.5 is WCAG 2.2's bound for text (criterion 1.4.3)."""
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, WCAG 2.2."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
