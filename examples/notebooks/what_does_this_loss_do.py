"""What does this loss do? Choose one, move its settings, and watch the loss and its gradient at each token.

marimo run examples/notebooks/what_does_this_loss_do.py
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="What does this loss do?")

with app.setup:
    from typing import Any

    import marimo as mo
    import matplotlib.pyplot as plt
    import torch

    import lossbook as lb
    from lossbook.cookbook.inspect.token_losses import token_losses
    from lossbook.losses.cards.card import SettingCard
    from lossbook.losses.cards.curves import curve_of
    from lossbook.losses.cards.examples import example_batch, kind_of
    from lossbook.losses.cards.plots import curve_figure


@app.cell(hide_code=True)
def _():
    mo.md("""
    # What does this loss do?

    Choose a loss and move its settings. In the curves one quantity moves, and everything else stays. Below them the loss is called on two
    short answers, with the value and the gradient of each token. All numbers come from calling the loss.
    """)
    return


@app.cell
def _():
    choice = mo.ui.dropdown(lb.list_losses(), value="grpo", label="loss", searchable=True)
    choice
    return (choice,)


@app.cell
def _(choice):
    name = choice.value
    card = lb.describe_loss(name)
    return card, name


@app.function
def ends(setting: SettingCard) -> tuple[float, float]:
    """Where a slider begins and ends: within the setting's bounds, and as far from its default as it is worth looking."""
    default = float(setting.default)
    low, high = min(0.0, 2 * default), max(1.0, 4 * default)
    text = setting.bounds
    if text.startswith("in "):
        inner = text[4:-1].split(", ")
        low, high = float(inner[0]), float(inner[1])
        if text[3] == "(":  # an end that does not belong to the interval: come half as near as the default, or nearer
            low += min(default - low, (high - low) / 50) / 2
        if text[-1] == ")":
            high -= min(high - default, (high - low) / 50) / 2
    elif text.startswith("at least "):
        low = float(text.removeprefix("at least "))
    elif text.startswith("above "):
        low = float(text.removeprefix("above "))
        low += (default - low) / 10
    return low, high


@app.function
def control(setting: SettingCard) -> Any:
    """A slider, a choice, a box or a number for a setting, by its type, bounds and default; None if it has no plain value."""
    if '"' in setting.type:
        choices = [choice.strip().strip('"') for choice in setting.type.split("|")]
        return mo.ui.dropdown(choices, value=str(setting.default), label=setting.name)
    if setting.type == "bool":
        return mo.ui.checkbox(value=setting.default, label=setting.name)
    if setting.type == "float" and not setting.required:
        low, high = ends(setting)
        steps = sorted({*(low + (high - low) * i / 40 for i in range(41)), float(setting.default)})
        return mo.ui.slider(steps=steps, value=float(setting.default), show_value=True, label=setting.name)
    return None


@app.cell
def _(card):
    controls = mo.ui.dictionary(
        {key: one for key, setting in card.settings.items() if (one := control(setting)) is not None}
    )
    moved = mo.ui.slider(-1.5, 1.5, 0.05, value=0.0, show_value=True, label="move every logprob by (nats)")
    mo.vstack([*controls.elements.values(), moved])
    return controls, moved


@app.cell
def _(controls, moved):
    values = controls.value
    shift = moved.value
    return shift, values


@app.cell
def _(name, values):
    try:
        length = {"norm_length": 8} if values.get("reduction") == "seq-mean-token-sum-norm" else {}
        loss, refusal = lb.get_loss(name, **values, **length), ""
    except lb.errors.LossConfigError as error:
        loss, refusal = None, str(error)
    mo.callout(mo.md(refusal), kind="danger") if refusal else mo.md(f"`{loss!r}`")
    return loss, refusal


@app.cell
def _(loss):
    mo.stop(loss is None)
    curve = curve_of(loss)
    curve_figure(curve) if curve else mo.md("This loss names no quantity that could be moved alone.")
    return (curve,)


@app.function
def per_token(loss: Any, shift: float) -> list[dict[str, Any]]:
    """One row per token of a small batch: what the loss reads there, its value, and d loss / d output. shift: nats."""
    kind = kind_of(loss)
    for count in (4, 6, 2):
        try:
            data, outputs = example_batch(loss, kind, count)
            if "logprobs" in outputs:
                outputs["logprobs"] = [(one.detach() + shift).clamp(max=-1e-3) for one in outputs["logprobs"]]
            given = {name.removesuffix("s") if name == "embeddings" else name: rows for name, rows in outputs.items()}
            each = [{key: rows[i].detach() for key, rows in given.items()} for i in range(len(data))]
            results = token_losses(loss, data, each)
            break
        except lb.errors.LossbookError:
            if kind != "embeddings":  # the others take any number of answers
                raise
    rows = []
    for i, result in enumerate(results):
        columns = {key: torch.as_tensor(column) for key, column in result.columns.items()}
        length = max((len(column) for column in columns.values()), default=1)
        for t in range(length):
            numbers = {key: column[t].tolist() for key, column in columns.items() if len(column)}
            if result.embedding_gradient is not None:
                numbers["embedding_gradient"] = result.embedding_gradient
            rows.append({"answer": i, "token": t, **numbers})
    return rows


@app.cell
def _(loss, shift):
    mo.stop(loss is None)
    rows = per_token(loss, shift)
    shortened = {key: "{:.4g}".format for key, value in rows[0].items() if isinstance(value, float)}
    mo.vstack(
        [
            mo.md("## At each token"),
            mo.ui.table(rows, selection=None, format_mapping=shortened),
        ]
    )
    return (rows,)


@app.cell
def _(rows):
    shown = [key for key in rows[0] if key == "loss" or key.endswith("gradient")]
    labels = [f"{row['answer']}.{row['token']}" for row in rows]
    figure, panels = plt.subplots(1, len(shown), figsize=(4 * len(shown), 2.6), layout="constrained", squeeze=False)
    for panel, key in zip(panels[0], shown, strict=True):
        heights = torch.tensor([row[key] for row in rows], dtype=torch.float64).nan_to_num()
        columns = heights.reshape(len(rows), -1).T.tolist()  # several where a position has several candidates
        width = 0.8 / len(columns)
        for k, column in enumerate(columns):
            panel.bar([i + width * k for i in range(len(rows))], column, width)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(rows)), labels)
        panel.set(title=key, xlabel="answer.token")
    figure
    return (figure,)


@app.cell
def _(card):
    mo.accordion({"The card of this loss": mo.plain_text(str(card))})
    return


if __name__ == "__main__":
    app.run()
