"""What sphinx-gallery does before each script: matplotlib gets the gallery's style, and loading a model prints nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from transformers.utils import logging as transformers_logging

STYLE = Path(__file__).resolve().parents[2] / "examples" / "gallery" / "gallery.mplstyle"


def apply(gallery_conf: dict[str, Any], fname: str | None) -> None:
    """One of sphinx-gallery's `reset_modules`."""
    plt.rcdefaults()
    plt.style.use(STYLE)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says, once, which kernels it lacks
    transformers_logging.disable_progress_bar()
