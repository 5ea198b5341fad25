"""Timing in turns, ratios within rounds, peak memory, tables and files of results."""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

MEGABYTE = 10**6  # of 64 that are held, 62 must be counted: Linux adds up pages a few dozen at a time
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory of a CPU is read from /proc")


@pytest.fixture
def measuring() -> ModuleType:
    return importlib.import_module("measuring")


def filled(megabytes: int) -> torch.Tensor:
    return torch.full((megabytes * MEGABYTE,), 1, dtype=torch.uint8)


@linux
def test_peak_memory_counts_what_a_call_returns(measuring: ModuleType) -> None:
    assert 62 * MEGABYTE < measuring.peak_memory(lambda: filled(64)) < 80 * MEGABYTE


@linux
def test_peak_memory_counts_what_a_call_has_let_go_again(measuring: ModuleType) -> None:
    def call() -> None:
        filled(64)
        filled(16)

    assert 62 * MEGABYTE < measuring.peak_memory(call) < 80 * MEGABYTE


@linux
def test_peak_memory_does_not_count_what_was_held_before(measuring: ModuleType) -> None:
    held = filled(64)
    assert measuring.peak_memory(lambda: held.max()) < 16 * MEGABYTE


def test_the_order_rotates_and_rounds_that_warm_up_are_not_returned(measuring: ModuleType) -> None:
    order: list[str] = []
    ways = {label: lambda label=label: order.append(label) for label in "abc"}
    times = measuring.interleaved(ways, 2, warm_ups=1, after=lambda: order.append("-"))
    assert order == list("a-b-c-" + "b-c-a-" + "c-a-b-")
    assert {label: len(taken) for label, taken in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_taken_within_a_round_so_that_a_slow_one_does_not_move_them(measuring: ModuleType) -> None:
    times = {"ours": [2.0, 4.0, 2.0], "other": [2.2, 4.4, 2.2]}
    ratio = measuring.ratio(times, "other", to="ours")
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.1, 1.1, 1.1))


def test_quartiles_are_those_of_the_numbers_and_of_one_number_itself(measuring: ModuleType) -> None:
    assert measuring.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == measuring.Ratio(3.0, 2.0, 4.0)
    assert measuring.quartiles([7.0]) == measuring.Ratio(7.0, 7.0, 7.0)


def test_a_table_has_a_column_for_each_key_of_the_first_row(measuring: ModuleType) -> None:
    rows = [{"way": "ours", "seconds": 0.123456, "peak": 1234.5}, {"way": "other", "seconds": None}]
    assert measuring.markdown(rows).splitlines() == [
        "| way | seconds | peak |",
        "|---|---|---|",
        "| ours | 0.123 | 1234 |",
        "| other | - | - |",
    ]


def test_results_are_written_with_their_environment_and_ratios_with_their_quartiles(
    measuring: ModuleType, tmp_path: Path
) -> None:
    measuring.write("ratio", [{"way": "ours", "ratio": measuring.Ratio(2.0, 1.5, 2.5)}], tmp_path / "new")
    flat = {"way": "ours", "ratio": 2.0, "ratio (lower quartile)": 1.5, "ratio (upper quartile)": 2.5}
    record = json.loads((tmp_path / "new" / "ratio.json").read_text())
    assert record["results"] == [flat]
    assert record["environment"]["torch"] == importlib.metadata.version("torch")
    with open(tmp_path / "new" / "ratio.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in flat.items()}]


def test_a_quick_run_does_not_overwrite_results(measuring: ModuleType, tmp_path: Path) -> None:
    assert measuring.folder_for(None, quick=True) == measuring.RESULTS / "quick"
    assert measuring.folder_for(None, quick=False) == measuring.RESULTS
    assert measuring.folder_for(tmp_path, quick=True) == tmp_path
