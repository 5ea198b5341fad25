"""Debug a run: its curves, what looks wrong and what to try, and the tokens that the loss pulls hardest.

marimo run examples/notebooks/debug_a_run.py -- --folder runs/sft
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Debug a run")

with app.setup:
    import contextlib
    import io
    import json
    import tempfile
    from pathlib import Path

    import marimo as mo
    import matplotlib.pyplot as plt

    from lossbook.cookbook import sft
    from lossbook.cookbook.diagnose.diagnostics import diagnose
    from lossbook.cookbook.diagnose.history import read_history
    from lossbook.cookbook.inspect.token_page import TOKEN_VIEW_CSS, TokenSequence, token_view_html
    from lossbook.cookbook.inspect.token_records import read_sequences


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Debug a run

    Give the folder of a run, finished or still training. Without one, a small run is made here: the tiny model learns
    twelve sums, and is measured by sums that it never saw.
    """)
    return


@app.cell
def _():
    given = mo.ui.text(value=str(mo.cli_args().get("folder") or ""), label="the run's folder", full_width=True)
    given
    return (given,)


@app.function
def small_run() -> Path:
    """The folder of a new run: 40 steps of fine-tuning on twelve sums, and sums that it never saw to measure it by."""
    folder = Path(tempfile.mkdtemp(prefix="lossbook-"))
    sums = {"train": range(11, 14), "held_out": range(61, 64)}
    for name, numbers in sums.items():
        rows = [
            {"prompt": f"{a} plus {b}? ", "completion": f"That is {a + b}."} for a in numbers for b in range(21, 25)
        ]
        folder.joinpath(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    config = sft.SFTConfig(
        model="tiny",
        data=str(folder / "train.jsonl"),
        eval_data=str(folder / "held_out.jsonl"),
        out=folder / "run",
        all_weights=True,
        learning_rate=1e-2,
        batch_size=4,
        steps=40,
        eval_every=2,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        sft.main(config)
    return folder / "run"


@app.cell
def _(given):
    folder = Path(given.value) if given.value else small_run()
    return (folder,)


@app.cell
def _(folder):
    history = read_history(folder)
    known = [
        key for key in ("loss", "held_out_nll", "accuracy", "margin", "reward", "grad_norm") if key in history.keys
    ]
    keys = mo.ui.multiselect(history.keys, value=known, label="curves")
    smoothing = mo.ui.slider(1, 15, 2, value=3, show_value=True, label="mean over steps")
    mo.hstack([keys, smoothing], justify="start")
    return history, keys, smoothing


@app.cell
def _(keys, smoothing):
    chosen, window = keys.value, smoothing.value
    return chosen, window


@app.function
def centred(values: list[float], window: int) -> list[float]:
    """The mean of each value and its neighbours, as many before as after; fewer at the ends."""
    means = []
    for i in range(len(values)):
        reach = min(window // 2, i, len(values) - 1 - i)
        means.append(sum(values[i - reach : i + reach + 1]) / (2 * reach + 1))
    return means


@app.cell
def _(chosen, history, window):
    mo.stop(not chosen, mo.md("Choose a curve."))
    curves = {key: history.series(key) for key in chosen}
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.4 * rows), layout="constrained", squeeze=False
    )
    for panel, (key, series) in zip(panels.flat, curves.items(), strict=False):
        values = series.values.tolist()
        panel.plot(series.steps, values, color="#2a78d6", alpha=0.3)
        panel.plot(series.steps, centred(values, window), color="#2a78d6")
        panel.set(title=key, xlabel="step")
    for panel in panels.flat[len(curves) :]:
        panel.set_visible(False)
    figure
    return curves, figure


@app.cell
def _(history):
    diagnoses = diagnose(history)
    kinds = {"problem": "danger", "warning": "warn", "note": "info"}
    mo.vstack(
        [
            mo.md("## What looks wrong"),
            *(
                mo.callout(
                    mo.md(f"**{one.title}**: {one.evidence}\n\n{one.advice}\n\n*{one.reason}*"), kinds[one.level]
                )
                for one in diagnoses
            ),
        ]
        if diagnoses
        else [
            mo.md(
                "## What looks wrong\n\nNothing that the diagnostics know of. A run without a diagnosis can still be wrong."
            )
        ]
    )
    return (diagnoses,)


@app.cell
def _(folder):
    recorded = [row for row in read_sequences(folder) if "refused" not in row]
    mo.stop(not recorded, mo.md("This run recorded no tokens."))
    steps = sorted({row["step"] for row in recorded})
    numbers = [key for key in recorded[0]["tokens"] if key not in ("text", "id")]
    step_choice = mo.ui.dropdown({str(step): step for step in steps}, value=str(steps[-1]), label="step")
    column_choice = mo.ui.dropdown(numbers, value="loss" if "loss" in numbers else numbers[0], label="by")
    mo.vstack([mo.md("## The worst tokens"), mo.hstack([step_choice, column_choice], justify="start")])
    return column_choice, recorded, step_choice


@app.cell
def _(column_choice, step_choice):
    step, column = step_choice.value, column_choice.value
    return column, step


@app.cell
def _(column, recorded, step):
    sequences = [row for row in recorded if row["step"] == step]
    tokens = [
        {"sequence": f"{row['datum']} {row['side']}".strip(), "token": text, "position": position, column: value}
        for row in sequences
        for position, (text, value) in enumerate(zip(row["tokens"]["text"], row["tokens"][column], strict=True))
        if value is not None
    ]
    worst = sorted(tokens, key=lambda token: -abs(token[column]))[:12]
    mo.ui.table(worst, selection=None)
    return sequences, worst


@app.cell
def _(column, sequences):
    view = token_view_html(
        [
            TokenSequence(
                f"sequence {row['datum']} {row['side']}",
                row["tokens"]["text"],
                row["tokens"]["id"],
                {column: row["tokens"][column]},
            )
            for row in sequences
        ],
        [column],
    )
    mo.Html(f"<style>{TOKEN_VIEW_CSS}</style>{view}")
    return (view,)


if __name__ == "__main__":
    app.run()
