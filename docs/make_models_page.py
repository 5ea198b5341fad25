"""Write models.md from the sweep over every model in tests/trainer/every_model. `make docs` runs this script: 5 minutes.

    python docs/make_models_page.py [TYPE ...]

With types, only their rows are tried again; the others are taken from the page.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main(types: list[str]) -> None:
    """Try the models and write the page."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT))
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    page, outcome = (module(f"tests.trainer.every_model.{name}") for name in ("page", "outcome"))
    rows = {row.model_type: row for row in page.rows_of_page()} if types else {}
    for model_type in types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            rows[model_type] = outcome.row_of(model_type, Path(folder))
    page.PAGE.write_text(page.page_of(rows.values(), transformers.__version__), encoding="utf-8")
    print(f"{page.counts_of(rows.values())}: {page.PAGE}")


def module(name: str) -> Any:
    """A module of the tests, imported as pytest does."""
    return importlib.import_module(name)


if __name__ == "__main__":
    main(sys.argv[1:])
