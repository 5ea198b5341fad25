"""What sphinx-gallery does before each script: matplotlib gets the gallery's style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

STYLE = Path(__file__).resolve().parents[2] / "examples" / "gallery" / "gallery.mplstyle"


def apply(gallery_conf: dict[str, Any], fname: str | None) -> None:
    """One of sphinx-gallery's `reset_modules`."""
    plt.rcdefaults()
    plt.style.use(STYLE)
