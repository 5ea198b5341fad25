"""Every causal language model of transformers gives right numbers or is refused with a reason, and docs/models.md says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .outcome import row_of
from .page import PAGE, lines_of_page

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers and peft warn about what they look up, tie or wrap
@pytest.mark.parametrize("model_type", TYPES)
def test_every_check_holds_or_the_model_is_refused_as_its_row_says(model_type: str, tmp_path: Path) -> None:
    assert str(row_of(model_type, tmp_path)) == lines_of_page().get(model_type), (
        "run `make docs` to write the page anew"
    )


def test_the_page_has_a_row_for_each_type_and_counts_them() -> None:
    assert sorted(lines_of_page()) == TYPES
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    counts = [int(number) for number in re.findall(r"(\d+) (?:of \d+ run|are refused|cannot be built)", text)]
    tables = [table.count("\n| `") for table in PAGE.read_text(encoding="utf-8").split("\n## ")]
    assert counts == tables
