"""Take the pictures of docs/notebooks.md in Chromium, of both notebooks as `marimo run` serves them.

    python docs/make_notebook_pictures.py

Needs Chromium (apt-get install chromium) and `pip install 'lossbook[browser,notebook]'`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
NOTEBOOKS = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
#: The notebook, its picture, the size in pixels, and a text that is there once all cells have run.
PICTURES = (
    ("what_does_this_loss_do", "notebook_loss", (1100, 1500), "The card of this loss"),
    ("debug_a_run", "notebook_run", (1100, 1400), "The worst tokens"),
)
#: Number of colours of a picture, to keep files small.
PALETTE = 96


def main() -> None:
    """Serve each notebook, wait for its last cell, and take its picture."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for notebook, name, (width, height), last in PICTURES:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            words = ["run", str(NOTEBOOKS / f"{notebook}.py"), "--headless", "--no-token", "--port", str(port)]
            server = subprocess.Popen([sys.executable, "-m", "marimo", *words], env={**os.environ, "MPLBACKEND": "agg"})
            try:
                page = browser.new_page(viewport={"width": width, "height": height})
                _wait_for(port)
                page.goto(f"http://127.0.0.1:{port}")
                page.get_by_text(last).first.wait_for(timeout=180_000)
                page.wait_for_timeout(3000)
                path = IMAGES / f"{name}.png"
                page.screenshot(path=path)
                Image.open(path).convert("RGB").quantize(PALETTE).save(path, optimize=True)
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
            finally:
                server.terminate()
                server.wait(timeout=30)
        browser.close()


def _wait_for(port: int) -> None:
    """Wait until the server takes connections, for a minute at most."""
    for _ in range(120):
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"marimo did not answer on port {port}")


if __name__ == "__main__":
    main()
