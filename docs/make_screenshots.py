"""Pictures of eight pages of the site, for a desktop and a phone, light and dark, to be looked at: docs/_build/screens/*.png.

    make docs-site && python docs/make_screenshots.py [PAGE ...]

Needs Chromium and the extra `browser`.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HTML = Path(__file__).resolve().parent / "_build" / "html"
SCREENS = HTML.parent / "screens"
#: Page, and what is scrolled to.
PAGES = {
    "index": "",
    "losses/which-loss": "",
    "losses/preference": "dpo",
    "losses/policy": "ppo",
    "api/clients": "",
    "cli": "lossbook-train-sft",
    "recipes/sft": "",
    "reports": "",
}
VIEWS = {"desktop": (1360, 900), "phone": (390, 844)}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the folder is served, until the end of the block."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main(pages: list[str]) -> None:
    """Take the pictures."""
    from playwright.sync_api import sync_playwright

    SCREENS.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as api, served(HTML) as address:
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for view, (width, height) in VIEWS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                context.set_default_timeout(120_000)
                opened = context.new_page()
                for page in pages or PAGES:
                    place = f"#{PAGES[page]}" if PAGES.get(page) else ""
                    opened.goto(f"{address}/{page}.html{place}")
                    opened.wait_for_load_state("load")
                    opened.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
                    opened.screenshot(path=SCREENS / f"{page.replace('/', '-')}_{view}_{scheme}.png")
                context.close()
        browser.close()
    print(f"{len(list(SCREENS.glob('*.png')))} pictures in {SCREENS}")


if __name__ == "__main__":
    main(sys.argv[1:])
