"""One page of all results: the aims and the measured values, a table for each benchmark, and plots.

python benchmarks/summary.py                 # results/README.md from the JSON files in results/
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring

Row = Mapping[str, Any]
LOWER, UPPER = " (lower quartile)", " (upper quartile)"


@dataclass(frozen=True)
class Aim:
    """A bound that should hold in each of several cases: the measured number by case, and its bounds."""

    text: str
    measured: Callable[[Sequence[Row]], dict[str, float]]
    at_least: float = float("-inf")
    at_most: float = float("inf")

    def rows(self, results: Sequence[Row]) -> list[dict[str, str]]:
        """One row per case; none if nothing was measured."""
        return [
            {"aim": self.text, "where": case, "measured": f"{value:.3g}", "holds": self.verdict(value)}
            for case, value in self.measured(results).items()
        ]

    def verdict(self, value: float) -> str:
        """Whether the bounds hold."""
        return "yes" if self.at_least <= value <= self.at_most else "**no**"


@dataclass(frozen=True)
class Section:
    """The results whose files begin with `prefix`."""

    prefix: str
    title: str
    aims: tuple[Aim, ...] = ()


def worst(column: str, case: Sequence[str], pick: Callable[[Iterable[float]], float], **wanted: Any) -> Any:
    """The least favourable number of a column, by case (the values of some columns), over rows with the wanted values."""

    def measured(rows: Sequence[Row]) -> dict[str, float]:
        values_by_case: dict[str, list[float]] = {}
        for row in rows:
            if column in row and all(accepts(row.get(key, "")) for key, accepts in wanted.items()):
                values_by_case.setdefault(describe(row, case), []).append(float(row[column]))
        return {name: pick(values) for name, values in values_by_case.items()}

    return measured


def describe(row: Row, columns: Sequence[str]) -> str:
    """The values of some columns in words."""
    return ", ".join(str(row[c]) if c == "model" else f"{c} {cell(row[c])}" for c in columns if row.get(c) is not None)


def is_tuned(way: str) -> bool:
    """Whether a way is one of the tuned TRL configurations."""
    return way.startswith("TRL tuned")


def is_by_hand(way: str) -> bool:
    """Whether it is the hand-written loop."""
    return way == "hand-written"


def is_smollm2(model: str) -> bool:
    """Whether a row is about the real model."""
    return model.lower().startswith("smollm2")


def is_step(what: str) -> bool:
    """Whether a row of gemm_peak is about our step."""
    return what == "ours"


RATIO = "time / ours"
SFT, GRPO = ("model", "labels"), ("model", "prompt")
SECTIONS = (
    Section(
        "custom_versus_builtin",
        "A custom loss beside a built-in one and beside two passes",
        (
            Aim(
                "custom / built-in ≤ 1.03",
                worst("custom / built-in", ("model", "labels"), max, model=is_smollm2),
                at_most=1.03,
            ),
            Aim(
                "two passes / custom ≥ 1.3",
                worst("two passes / custom", ("model", "labels"), min, model=is_smollm2),
                1.3,
            ),
        ),
    ),
    Section(
        "serve_graphs",
        "A loss that came to the server as a graph, beside the built-in one",
        (Aim("graph / built-in ≤ 1.1", worst("graph / built-in", ("model", "loss"), max), at_most=1.1),),
    ),
    Section(
        "serve_http",
        "A call over HTTP, beside the same call in the client's process",
        (
            Aim("HTTP / in process ≤ 1.15", worst("HTTP / in process", ("model",), max), at_most=1.15),
            Aim("graph / built-in over HTTP ≤ 1.1", worst("graph / built-in", ("model",), max), at_most=1.1),
        ),
    ),
    Section(
        "serve_pollers",
        "Clients that wait at a server",
        (Aim("memory late / early ≤ 1.05", worst("growth", ("clients",), max), at_most=1.05),),
    ),
    Section("head", "Logprobs of given tokens and their backward"),
    Section("full_vocabulary", "Distillation over the whole vocabulary"),
    Section("loss_cost", "What the losses themselves cost"),
    Section(
        "steps_sft",
        "A supervised fine-tuning step",
        (
            Aim("SFT: fastest tuned TRL / ours ≥ 2", worst(RATIO, SFT, min, way=is_tuned), 2.0),
            Aim("SFT: hand-written / ours ≥ 1.6", worst(RATIO, SFT, min, way=is_by_hand), 1.6),
        ),
    ),
    Section(
        "steps_dpo",
        "A DPO step",
        (Aim("DPO: fastest tuned TRL / ours ≥ 3", worst(RATIO, ("model",), min, way=is_tuned), 3.0),),
    ),
    Section(
        "steps_grpo",
        "A GRPO step, sampling included",
        (Aim("GRPO: fastest tuned TRL / ours ≥ 2", worst(RATIO, GRPO, min, way=is_tuned), 2.0),),
    ),
    Section(
        "growth",
        "How time and memory grow",
        (
            Aim(
                "slope of log time over log tokens near 1",
                worst("slope of time", ("grows",), max, grows="tokens".__eq__),
                0.9,
                1.1,
            ),
        ),
    ),
    Section(
        "sampling",
        "Sampling beside `generate`",
        (
            Aim(
                "sampling: ours / generate ≥ 2", worst("times as fast", ("model", "weights", "prompt tokens"), min), 2.0
            ),
        ),
    ),
    Section(
        "gemm_peak",
        "The fraction of the measured GEMM peak",
        (
            Aim(
                "share of a GPU's measured GEMM peak ≥ 0.45",
                worst("of the measured peak", ("model",), min, what=is_step, device="cuda".__eq__),
                0.45,
            ),
        ),
    ),
    Section("scaling", "Steps on N ranks with N times the data"),
    Section("calls_of_scaling", "What a call on workers costs, beside a step"),
    Section("memory_of_scaling", "Memory of a GPU, beside what is planned"),
    Section("reranker", "A reranker after a short training"),
    Section(
        "launches",
        "What a step asks a GPU for",
        (
            Aim(
                "launches: ours, packed / plain loop ≤ 1.05",
                worst("launches / plain loop", ("step",), max, way="ours, packed".__eq__, products="bfloat16".__eq__),
                at_most=1.05,
            ),
            Aim(
                "launches: ours, fused / plain loop ≤ 0.6",
                worst("launches / plain loop", ("step",), max, way="ours, fused".__eq__, products="bfloat16".__eq__),
                at_most=0.6,
            ),
            Aim(  # what is chosen in float32 for a model of this size
                "launches in float32: ours, padded / plain loop ≤ 1.05",
                worst("launches / plain loop", ("step",), max, way="ours, padded".__eq__, products="float32".__eq__),
                at_most=1.05,
            ),
            Aim(
                "launches: a sampled token / generate's ≤ 1",
                worst("launches / generate", ("step", "products"), max, way="ours, packed".__eq__),
                at_most=1.0,
            ),
            Aim(
                "reads in a micro-batch ≤ 1",
                worst("reads", ("step", "products"), max, way="ours, packed".__eq__),
                at_most=1.0,
            ),
            Aim(
                "uploads in a micro-batch ≤ 2",
                worst("uploads", ("step", "products"), max, way="ours, packed".__eq__),
                at_most=2.0,
            ),
            Aim(
                "launches of clip and optimizer ≤ 20",
                worst("clip and optimizer", ("step", "products"), max, way="ours, packed".__eq__),
                at_most=20.0,
            ),
        ),
    ),
    Section(
        "import_time", "Import", (Aim("import lossbook beyond torch < 0.3 s", worst("extra s", (), max), at_most=0.3),)
    ),
)


def cell(value: Any) -> str:
    """A value as `measuring` prints it."""
    return measuring.markdown([{"x": value}]).splitlines()[-1][2:-2]


def table(rows: Sequence[Row]) -> str:
    """A markdown table of rows from JSON: medians with their quartiles in brackets."""
    columns = list(dict.fromkeys(key for row in rows for key in row if not key.endswith((LOWER, UPPER))))
    shown = []
    for row in rows:
        values = {column: row.get(column) for column in columns}
        for column in columns:
            if column + LOWER in row:
                values[column] = str(measuring.Ratio(row[column], row[column + LOWER], row[column + UPPER]))
        shown.append(values)
    return measuring.markdown(shown)


def read(folder: Path, prefix: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of all files of a section, in the files' order, and their environments without repeats."""
    rows: list[Row] = []
    environments: list[dict[str, Any]] = []
    for file in sorted(folder.glob(f"{prefix}*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        rows += record["results"]
        if record["environment"] not in environments:
            environments.append(record["environment"])
    return rows, environments


def plot_steps(results: Mapping[str, Sequence[Row]], path: Path) -> bool:
    """Bars: how many times as long as ours each way takes, a panel a kind of step. False where there are none."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kinds = {title: rows for title, rows in results.items() if any(RATIO in row for row in rows)}
    if not kinds:
        return False
    figure, panels = plt.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 4), squeeze=False, layout="constrained")
    for (title, rows), panel in zip(kinds.items(), panels[0], strict=True):
        others = [row for row in rows if row["way"] != "ours"]
        labels = [f"{row['way']}\n{describe(row, ('model', 'labels', 'prompt'))}" for row in others]
        panel.barh(
            labels, [row[RATIO] for row in others], color=["C1" if is_by_hand(row["way"]) else "C0" for row in others]
        )
        panel.axvline(1.0, color="black", linewidth=1)
        panel.tick_params(axis="y", labelsize=6)
        panel.set(title=title, xlabel="time / ours")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return True


def write(folder: Path = measuring.RESULTS) -> str:
    """README.md and steps.png in the folder of the results; returns the page."""
    aims: list[dict[str, str]] = []
    parts: list[str] = []
    steps: dict[str, Sequence[Row]] = {}
    environments: list[dict[str, Any]] = []
    for section in SECTIONS:
        rows, own = read(folder, section.prefix)
        if not rows:
            continue
        environments += [e for e in own if e not in environments]
        aims += [row for aim in section.aims for row in aim.rows(rows)]
        parts.append(f"## {section.title}\n{table(rows)}\n")
        if section.prefix.startswith("steps"):
            steps[section.title] = rows
        if section.prefix == "growth":
            parts += [f"![growth]({image.name})\n" for image in sorted(folder.glob("growth*.png"))]
    if plot_steps(steps, folder / "steps.png"):
        parts.insert(0, "![how many times as long as ours each way takes](steps.png)\n")
    machines = "\n".join("- " + ", ".join(f"{key} {value}" for key, value in e.items()) for e in environments)
    page = "\n".join(
        [
            "# Results",
            "Written by `make bench` from the JSON files beside it; a CSV stands beside each. Times are medians over rounds,",
            "ratios are taken within a round, in brackets their quartiles. Peak memory is what a call holds beyond what was",
            "held before it.\n",
            f"Measured on:\n{machines}\n",
            f"## The aims\n{measuring.markdown(aims) if aims else 'None was measured.'}\n",
            *parts,
        ]
    )
    (folder / "README.md").write_text(page, encoding="utf-8")
    return page


if __name__ == "__main__":
    write()
