"""The site of docs/: it builds, its links lead somewhere, and its blocks of code are run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lossbook import describe_loss, list_losses

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def links() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "check_links.py"))


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A module of docs/_extensions; needs the extra `docs`."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    return pytest.importorskip(request.param)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(site: Path, links: dict[str, Any]) -> None:
    followed, wrong = links["check"](site)
    assert wrong == []
    assert followed > 10_000


@pytest.mark.slow
def test_every_loss_and_every_public_name_can_be_searched_for(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    missing = [name for name in list_losses() if f'"{name}"' not in index]
    assert missing == []
    assert all(f'"{name}"' in index for name in ("ServiceClient", "register_loss", "check_loss"))


@pytest.mark.parametrize(
    ("link", "trouble"),
    [
        pytest.param("other.html#here", [], id="an anchor of another page"),
        pytest.param(
            "other.html#there", ["page.html: other.html#there: no such anchor"], id="an anchor that is missing"
        ),
        pytest.param("gone.html", ["page.html: gone.html: no such file"], id="a page that is missing"),
        pytest.param("https://elsewhere.org/gone", [], id="another site, which is not asked"),
        pytest.param(
            "https://github.com/lossbook/lossbook/blob/main/losses/gone.py",
            [
                "page.html: https://github.com/lossbook/lossbook/blob/main/losses/gone.py: no such file in the repository"
            ],
            id="a file of the repository that is missing",
        ),
    ],
)
def test_a_link_that_leads_nowhere_is_told(
    link: str, trouble: list[str], links: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(f'<a href="{link}">link</a>')
    (tmp_path / "other.html").write_text('<h1 id="here">Here</h1>')
    assert links["check"](tmp_path)[1] == trouble


@pytest.mark.parametrize("extension", ["repository"], indirect=True)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a](losses/policy.md#ppo)", "[a](losses/policy.md#ppo)"),
        ("[a](../losses/registry.py)", "[a](CODE/blob/main/losses/registry.py)"),
        ("[a](../losses)", "[a](CODE/tree/main/losses)"),
        ("[a](../CHANGELOG.md#unreleased)", "[a](changelog.md#unreleased)"),
        ("![a](../docs/overview.svg)", "![a](overview.svg)"),
        ("[a](https://example.org/x.py)", "[a](https://example.org/x.py)"),
        ("[a](#below)", "[a](#below)"),
        ("```\n[a](../losses)\n```", "```\n[a](../losses)\n```"),
    ],
)
def test_a_link_of_a_page_leads_to_the_same_on_the_site(extension: Any, text: str, shown: str) -> None:
    on_site = extension.on_site(text, DOCS / "page.md", "page", {"changelog": "CHANGELOG.md"}, "CODE")
    assert on_site == shown


@pytest.mark.parametrize("extension", ["mathml"], indirect=True)
def test_every_formula_can_be_set(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from loss_pages.formulas import formula_in_math

    plain = 0
    for card in map(describe_loss, list_losses()):
        said = formula_in_math(card.formula, {*card.settings, *card.inputs, *card.outputs})
        plain += not said.math
        for tex in [said.math, *re.findall(r"\$\$?([^$]+)\$\$?", said.words)]:
            assert extension.mathml(tex).startswith("<math")
    assert plain <= 3  # formulas that are words, such as info_nce's


@pytest.mark.parametrize(
    ("formula", "math", "words"),
    [
        ("-r A, where r = exp(logprobs). No clip.", "- r A", r"where $r = \exp (\log\pi)$. No clip"),
        ("(1 - p^-alpha) / alpha", r"\frac{1 - p^{-\alpha}}{\alpha}", ""),
        ("½ (v - v_old)²: half a square.", r"\tfrac{1}{2} (v - v_{\text{old}})^2", "half a square"),
        ("-a_b KL(x || y) without a KL.", r"- a_{b} \mathrm{KL} (x \,\|\, y)\text{ without a KL}", ""),
        ("max_drop r.", r"\mathtt{max\_drop}\, r", ""),
        ("Σ_{j≠i} softmax(s)_i / e^{z_j}.", r"\sum_{j \ne i} \mathrm{softmax} (s)_{i} / e^{{z_{j}}}", ""),
        ("|s_(k) - 2^{n - k}|: sorted.", r"|s_{(k)} - 2^{{n - k}}|", "sorted"),
    ],
)
def test_a_plain_formula_becomes_math_up_to_its_words(
    formula: str, math: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from loss_pages.formulas import formula_in_math

    said = formula_in_math(formula, {"max_drop"})
    assert (said.math.replace(r" \text", r"\text"), said.words) == (math, words)


@pytest.mark.parametrize("extension", ["api"], indirect=True)
def test_docstrings_keep_their_columns_and_their_code(extension: Any) -> None:
    lines = ["Sets `x_` to a*b.", "", "name   [T]  nats", "other  [N]  -", "", "- one", "  more", "- two"]
    shown = list(extension.as_rst(lines))
    assert shown[0] == r"Sets ``x_``\  to a\*b."
    assert shown[2:5] == ["::", "", "   name   [T]  nats"]
    assert [line for line in shown if line.startswith("- ")] == ["- one more", "- two"]


def test_every_block_of_python_is_run_or_says_why_not() -> None:
    count = runpy.run_path(str(DOCS / "count_blocks.py"))
    counts = count["count"]()
    kinds = {kind for kind in counts if kind.startswith("python")}
    assert kinds <= {*count["TESTS"]}, "a block of Python whose words behind `python` no test knows"
    assert counts["python"] > 100
    assert counts["python no-run"] <= 5
