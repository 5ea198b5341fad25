"""The site in a real browser: search, no errors, no requests elsewhere, at both widths and in both colour schemes.

`make test-browser` runs it.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_screenshots.py"
pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def screens() -> dict[str, Any]:
    """The script that takes pictures: its pages and views are looked at here too."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def address(site: Path, screens: dict[str, Any]) -> Iterator[str]:
    with screens["served"](site) as served:
        yield served


@pytest.fixture(params=[(view, scheme) for view in ("desktop", "phone") for scheme in ("light", "dark")], ids="-".join)
def page(request: pytest.FixtureRequest, browser: Any, address: str, screens: dict[str, Any]) -> Iterator[Any]:
    """A page of one width and colour scheme; at the end nothing may have gone wrong, or been asked of another site."""
    view, scheme = request.param
    width, height = screens["VIEWS"][view]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(120_000)  # on a loaded machine
    opened = context.new_page()
    trouble: list[str] = []
    opened.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:")) else trouble.append(f"asked for {asked.url}"),
    )
    opened.on("response", lambda got: trouble.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
    yield opened
    context.close()
    assert trouble == []


def test_pages_fit_their_window_and_can_be_read(page: Any, address: str, screens: dict[str, Any]) -> None:
    for name in screens["PAGES"]:
        page.goto(f"{address}/{name}.html")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
        ink, paper = page.evaluate(
            "[getComputedStyle(document.querySelector('article p')).color, getComputedStyle(document.body).backgroundColor]"
        )
        light, dark = sorted((_luminance(ink), _luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, f"{name}: {ink} on {paper}"  # WCAG 2.2, criterion 1.4.3


def test_search_leads_to_a_loss(page: Any, address: str) -> None:
    page.goto(f"{address}/search.html?q=dpo")
    page.locator("#search-results li a[href*='losses/preference.html']").first.wait_for()  # results come one by one


def test_a_formula_is_set_in_the_texts_colour_and_its_font_is_loaded(page: Any, address: str) -> None:
    page.goto(f"{address}/losses/preference.html#dpo")
    page.wait_for_load_state("networkidle")
    formula = page.locator("#dpo math").first
    colours = formula.evaluate(
        "math => [getComputedStyle(math).color, getComputedStyle(math.closest('section')).color]"
    )
    assert colours[0] == colours[1]
    assert page.evaluate("document.fonts.check('16px \"STIX Two Math\"')")
    assert formula.bounding_box()["height"] > 10


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, WCAG 2.2."""
    parts = [float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
