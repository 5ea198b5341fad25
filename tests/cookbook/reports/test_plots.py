"""`lossbook runs plot`: several runs in one picture, and errors that say what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.commands.runs import labelled
from lossbook.cookbook.reports.panels import default_panels
from lossbook.cookbook.run.runs import open_run
from lossbook.datums.errors import ConfigError


def run_in(folder: Path, steps: int = 5, **numbers: float) -> Path:
    run = open_run(folder, {"loss": "cross_entropy"})
    for step in range(1, steps + 1):
        run.log(step, {key: value / step for key, value in numbers.items()})
    return run.path


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [
        str(run_in(tmp_path / "slow", loss=3.0, nll=3.0, grad_norm=1.0)),
        str(run_in(tmp_path / "fast", loss=2.0, nll=2.0, grad_norm=2.0)),
    ]


def test_several_runs_are_drawn_into_one_picture_with_their_names(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures" / "both.svg"
    assert main(["runs", "plot", *runs, "--out", str(out)]) == 0
    text = out.read_text()
    for word in ("slow", "fast", "negative log-likelihood", "gradient norm", "optimizer steps"):
        assert f">{word}" in text
    assert str(out) in capsys.readouterr().out


def test_the_same_runs_give_the_same_picture_byte_for_byte(runs: list[str], tmp_path: Path) -> None:
    pictures = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for picture in pictures:
        assert main(["runs", "plot", *runs, "--out", str(picture)]) == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_one_run_gets_its_picture_into_its_own_folder(runs: list[str]) -> None:
    assert main(["runs", "plot", runs[0], "--keys", "loss", "grad_norm"]) == 0
    assert (Path(runs[0]) / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_key_is_an_error_with_a_suggestion_and_the_recorded_keys(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "plot", *runs, "--keys", "grad_nrom"]) == 2
    error = capsys.readouterr().err
    assert "no run recorded 'grad_nrom'. Did you mean 'grad_norm'? Recorded: grad_norm, loss, nll" in error


def test_a_folder_of_runs_stands_for_them_and_one_that_is_not_there_is_named(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.svg"
    assert main(["runs", "plot", str(tmp_path), "--out", str(out)]) == 0
    assert all(f">{Path(run).name}" in out.read_text() for run in runs)
    assert main(["runs", "plot", str(tmp_path / "nowhere")]) == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_number_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["runs", "plot", str(tmp_path)]) == 1
    assert "ended before its first number" in capsys.readouterr().err


def test_a_note_among_the_numbers_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "nll": "so"}\n{"step": 2, "loss": "high", "nll": 1}\n'
    )
    assert main(["runs", "plot", str(tmp_path)]) == 0
    assert main(["runs", "report", str(tmp_path)]) == 0


def test_a_picture_of_an_unknown_format_is_refused(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "plot", *runs, "--out", "runs.jpg"]) == 2
    assert ".png, .svg, .pdf" in capsys.readouterr().err


def test_runs_of_the_same_name_are_labelled_with_their_parent_folders(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "sft", tmp_path / "b" / "sft"]
    assert list(labelled(paths)) == ["a/sft", "b/sft"]
    with pytest.raises(ConfigError, match="named twice"):
        labelled([tmp_path, tmp_path])


ROWS = {
    "sft": {"loss": 1.0, "nll": 1.0, "held_out_nll": 1.2, "held_out_score": 0.5, "grad_norm": 1.0},
    "another loss": {"loss": 0.5, "nll": 1.0},
    "rl": {
        "loss": 0.1,
        "nll": 0.9,
        "reward": 0.5,
        "held_out_score": 0.4,
        "ref_kl": 0.01,
        "clip_fraction": 0.1,
        "sampler_entropy": 1.0,
        "response_length": 30.0,
    },
    "dpo": {"loss": 0.6, "nll": 2.0, "accuracy": 0.7, "margin": 0.2, "held_out_accuracy": 0.6},
    "mixture": {"loss": 1.0, "grpo/clip_fraction": 0.1, "grpo/nll": 1.0},
    "embed": {"loss": 2.0, "in_batch_recall_at_1": 0.5, "held_out_recall_at_1": 0.4, "held_out_mrr": 0.5},
    "distill": {"loss": 1.0, "held_out_reverse_kl": 0.5, "held_out_forward_kl": 0.6},
    "of its own": {"held_out_taste": 0.5},
}
PANELS_OF = {
    "sft": ["nll held_out_nll", "held_out_score", "grad_norm"],
    "another loss": ["loss", "nll"],
    "rl": ["loss", "reward held_out_score", "ref_kl", "clip_fraction", "sampler_entropy", "response_length"],
    "dpo": ["loss", "accuracy held_out_accuracy", "margin"],
    "mixture": ["loss", "grpo/nll", "grpo/clip_fraction"],
    "embed": ["loss", "in_batch_recall_at_1 held_out_recall_at_1 held_out_mrr"],
    "distill": ["loss", "held_out_reverse_kl held_out_forward_kl"],
    "of its own": ["held_out_taste"],
}


@pytest.mark.parametrize("recipe", ROWS)
def test_each_recipe_has_its_panels(recipe: str) -> None:
    panels = default_panels({recipe: [{"step": 1, **ROWS[recipe]}]})
    assert [" ".join(panel.keys) for panel in panels] == PANELS_OF[recipe]


def test_values_of_different_losses_are_not_drawn_together() -> None:
    row = [{"step": 1, "loss": 0.4, "nll": 1.0}]
    runs = {"a": row, "b": row}
    assert [panel.keys for panel in default_panels(runs, {"a": "dft", "b": "cross_entropy"})] == [("nll",)]
    assert [panel.keys for panel in default_panels(runs, {"a": "dft", "b": "dft"})] == [("loss",), ("nll",)]
