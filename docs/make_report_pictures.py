"""Take the pictures of docs/reports.md in Chromium, of the report of a small run.

    lossbook train rl --config examples/rl.toml
    lossbook runs report runs/rl
    python docs/make_report_pictures.py runs/rl/report.html

Needs Chromium (apt-get install chromium) and `pip install 'lossbook[browser,plot]'`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
#: Number of colours of a picture, to keep files small.
PALETTE = 256


@dataclass(frozen=True)
class Picture:
    """A view of the page. top: the element to scroll to; clicked, hovered: elements to click and to point at."""

    name: str
    width: int
    height: int
    scheme: str
    top: str
    clicked: tuple[str, ...] = ()
    hovered: str | None = None


PICTURES = (
    Picture("report", 1150, 1120, "light", "header", hovered=".chart:nth-of-type(2) svg"),
    Picture(
        "report_tokens",
        1150,
        770,
        "dark",
        ".records",
        clicked=(".steps button:nth-of-type(2)", ".step:visible label:has-text('gradient')"),
        hovered=".step:visible .tv-token:last-of-type",
    ),
    Picture("report_phone", 390, 844, "light", "header"),
)


def take(page: Any, picture: Picture) -> None:
    """Take one picture and write it to IMAGES."""
    for selector in picture.clicked:
        page.locator(selector).first.click()
    page.locator(picture.top).first.evaluate(
        "element => window.scrollTo(0, element.getBoundingClientRect().top + window.scrollY - 16)"
    )
    if picture.hovered:
        page.locator(picture.hovered).last.hover()
    path = IMAGES / f"{picture.name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(PALETTE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(report: Path) -> None:
    """Take all pictures."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for picture in PICTURES:
            size: Any = {"width": picture.width, "height": picture.height}
            page = browser.new_context(viewport=size, color_scheme=picture.scheme).new_page()  # type: ignore[arg-type]
            page.goto(report.resolve().as_uri())
            take(page, picture)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
