"""Shared by the benchmarks: interleaved timing, peak memory, ratios within rounds, and tables of results."""

from __future__ import annotations

import csv
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
Way = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """A median over rounds with its quartiles. A ratio is taken within a round, so that a slow spell falls on both."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleaved(
    ways: Mapping[str, Way], rounds: int, *, warm_ups: int = 1, after: Way | None = None
) -> dict[str, list[float]]:
    """Seconds of each way in each round. The order rotates from round to round.

    after: run untimed after each way, to put back what it changed. Rounds that warm up are not returned.
    """
    times: dict[str, list[float]] = {label: [] for label in ways}
    labels = list(ways)
    for number in range(warm_ups + rounds):
        shift = number % len(labels)
        for label in labels[shift:] + labels[:shift]:
            taken = seconds(ways[label])
            if after is not None:
                after()
            if number >= warm_ups:
                times[label].append(taken)
    return times


def seconds(way: Way) -> float:
    """Wall time of one call, including GPU work."""
    _synchronize()
    start = time.perf_counter()
    way()
    _synchronize()
    return time.perf_counter() - start


def ratio(times: Mapping[str, Sequence[float]], label: str, to: str) -> Ratio:
    """How many times as long `label` takes as `to`."""
    return quartiles([a / b for a, b in zip(times[label], times[to], strict=True)])


def quartiles(values: Sequence[float]) -> Ratio:
    """Median and quartiles."""
    if len(values) < 2:
        return Ratio(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)


#: Of mallopt: blocks from this size on are the system's, and go back to it when they are freed.
_MMAP_THRESHOLD = -3


def peak_memory(way: Way) -> int:
    """The peak memory of a call in bytes, beyond the memory in use before it.

    On a GPU the allocator's count; on a CPU resident memory, whose high-water mark Linux lets a process reset. The result of
    the call is freed only afterwards, so results and gradients count.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = way()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before
    libc = ctypes.CDLL(None)
    # By default glibc keeps freed blocks of up to 32 MiB in its heap, where what lies free between others counts as held.
    libc.mallopt(_MMAP_THRESHOLD, 2**20)
    libc.malloc_trim(0)  # memory that the allocator kept from earlier calls would hide this one's
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _kilobytes("VmRSS")
    kept = way()
    del kept
    libc.mallopt(_MMAP_THRESHOLD, 2**25)  # so that calls that are timed later are as fast as before
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}: peak memory can be measured on Linux only")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    """The device, thread count and versions that the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    libraries = ("lossbook", "torch", "transformers", "trl", "cut-cross-entropy", "liger-kernel")
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: release for name in libraries if (release := installed(name)) is not None},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a column for each key of the first row; floats with three significant digits."""
    header = list(rows[0])
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(_cell(row.get(key)) for key in header)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def folder_for(out: Path | None, *, quick: bool) -> Path:
    """The folder for results: `out` if given, else results/, or results/quick/ for numbers that are not to be quoted."""
    return out or (RESULTS / "quick" if quick else RESULTS)


def write(name: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> None:
    """Write `<name>.json` with the environment, and `<name>.csv`; a Ratio becomes three columns."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = [_flat(row) for row in rows]
    record = {"environment": environment(), "results": flat}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        columns = list(dict.fromkeys(key for row in flat for key in row))
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Ratio):
            columns |= {key: value.median, f"{key} (lower quartile)": value.low, f"{key} (upper quartile)": value.high}
        else:
            columns[key] = value
    return columns
