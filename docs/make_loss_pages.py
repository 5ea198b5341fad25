"""Write the pages of losses/ from the registry: an index, a page per family, a plot per loss. `make docs` runs it.

    python docs/make_loss_pages.py

tests/docs/test_loss_pages.py fails when the pages are out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loss_pages.counts import counted, lacking, named
from loss_pages.data import needs_data_like, which_loss
from loss_pages.examples import example_block
from loss_pages.formulas import LOGPROBS, formula_in_math

from lossbook.losses import (
    UNPUBLISHED,
    Loss,
    LossCard,
    Preset,
    describe_loss,
    describe_preset,
    get_loss,
    list_losses,
    list_presets,
)
from lossbook.losses.cards.card import TensorCard
from lossbook.losses.cards.curves import curve_of
from lossbook.losses.cards.plots import curve_svg
from lossbook.losses.cards.sample_inputs import usable
from lossbook.losses.cards.watched import watched

DOCS = Path(__file__).resolve().parent
PAGES = DOCS / "losses"
IDS = DOCS.parent / "losses" / "ids.py"
FAMILIES = {
    "supervised": "Make given tokens likelier.",
    "policy": "Tokens that a policy sampled, with an advantage for each.",
    "preference": "Which of two responses is better, or whether a single response is good.",
    "distillation": "Make a student's distribution that of a teacher.",
    "embedding": "One pooled vector per datum.",
    "ranking": "One score per datum: a query with one of its candidates, which are a group.",
    "value": "Value functions, entropy, and other terms that are added to a policy's loss.",
}
IDS_HEAD = '''"""Ids of lossbook's own losses and presets, for editors to complete.

Made by docs/make_loss_pages.py (`make docs`) from the registry, with the pages of the losses. Nothing reads it when code runs: a
loss that does not stand here, such as one of your own, works all the same, and every call that takes an id takes any str.
"""

from typing import Literal

#: Ids and aliases; presets that are one loss; presets that are a mixture of losses.
'''
MADE = "<!-- Made by docs/make_loss_pages.py (`make docs`) from the registry: change the loss, not this page. -->"


def main() -> None:
    """Write every page and plot, and remove those of losses that no longer exist."""
    wanted = {PAGES / name: text for name, text in pages().items()}
    wanted |= {PAGES / plot_of(card): svg for card in cards() if (svg := plot(card.name)) is not None}
    for path in PAGES.rglob("*.*"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in wanted)
    IDS.write_text(ids(), encoding="utf-8")
    print(f"{len(wanted)} files, {size / 1e6:.1f} MB, in {PAGES}")


def cards() -> list[LossCard]:
    """The cards of lossbook's own losses, in the order of the pages."""
    own = [card for name in list_losses() if (card := describe_loss(name)).family in FAMILIES]
    return sorted(own, key=lambda card: ([*FAMILIES].index(card.family), card.name))


def pages() -> dict[str, str]:
    """The text of every page, by its path below losses/."""
    known = cards()
    families = {family: [card for card in known if card.family == family] for family in FAMILIES}
    texts = {f"{family}.md": _page(family, members) for family, members in families.items() if members}
    choice = [MADE, "", "# Which loss for my data", "", *which_loss(known)]
    return {
        "README.md": _index(families),
        **texts,
        "presets.md": _presets(),
        "which-loss.md": "\n".join(choice).rstrip() + "\n",
    }


def ids() -> str:
    """The text of losses/ids.py: the ids of lossbook's own losses and presets as types."""
    losses = sorted(name for card in cards() for name in (card.name, *card.aliases))
    mixtures = [name for name in list_presets() if not isinstance(get_loss(name), Loss)]
    presets = [name for name in list_presets() if name not in mixtures]
    kinds = (("LossId", losses), ("PresetId", presets), ("MixtureId", mixtures))
    types = [
        f"{kind} = Literal[\n" + "".join(f'    "{name}",\n' for name in names) + "]\n"
        if len(names) > 1
        else f"{kind} = Literal{names}\n".replace("'", '"')
        for kind, names in kinds
    ]
    return IDS_HEAD + "".join(types)


def plot_of(card: LossCard) -> str:
    """The path of a loss's plot below losses/."""
    return f"plots/{re.sub(r'[^A-Za-z0-9_.-]', '_', card.name)}.svg"


# The index.


def _index(families: dict[str, list[LossCard]]) -> str:
    count = sum(map(len, families.values()))
    lines = [
        MADE,
        "",
        "# Losses",
        "",
        f"{count} losses in {sum(map(bool, families.values()))} families, each one function in `losses/`. Get one with "
        "`get_loss(id)`; `lossbook losses show ID` prints its card in a terminal, `lossbook losses diff A B` sets two side "
        f"by side. [Which loss for my data](which-loss.md) starts from what you have. [Presets](presets.md) are {len(list_presets())} losses of other systems, as settings of these. T counts tokens, "
        "N datums, K candidates per position, D the coordinates of an embedding.",
        "",
    ]
    for family, members in families.items():
        if members:
            lines += [f"## [{family}]({family}.md): {len(members)}", "", FAMILIES[family], "", *_summary(members), ""]
    return "\n".join([*lines, *_counts(families)]) + "\n"


def _summary(members: Sequence[LossCard]) -> Iterator[str]:
    """One row per loss; axes that no loss of the family has are left out."""
    axes = {"ratio": lambda c: c.axes.ratio, "clip": lambda c: c.axes.clip, "KL": lambda c: c.axes.kl}
    shown = {name: get for name, get in axes.items() if any(get(card) != "none" for card in members)}
    heads = ("loss", "formula", *shown, "one loss per", "reduction", "source")
    rows = [
        (
            f"[`{card.name}`]({card.family}.md#{_anchor(card.name)})",
            _code(card.formula.removesuffix(".")),
            *(_text(get(card)) for get in shown.values()),
            card.per if card.per == card.couples else f"{card.per}; sees a whole {card.couples}",
            card.reduction,
            _text(card.source),
        )
        for card in members
    ]
    yield from _table(heads, rows)


def _counts(families: dict[str, list[LossCard]]) -> Iterator[str]:
    yield from ("## How many, here and elsewhere", "")
    heads, *rows = counted({family: len(members) for family, members in families.items()})
    yield from _table(heads, rows)
    yield from (
        "",
        "An id, a loss type of one trainer, or a loss function of a recipe counts once. The same formula under two "
        "trainers of a system counts twice there; here an id is one formula, and what differs by settings or by reduction "
        "alone is a preset unless other systems give it an id. Behind each of their names stands ours in brackets, where "
        "it is another.",
        "",
    )
    yield from (*named([*FAMILIES]), "", "### What others have and lossbook has not", "")
    heads, *rows = lacking()
    yield from _table(heads, rows)


# Other systems' losses.


def _presets() -> str:
    known = [describe_preset(name) for name in list_presets()]
    lines = [
        MADE,
        "",
        "# Presets: other systems' losses",
        "",
        'One of our losses, with the settings that make it that system\'s. `get_loss("trl:grpo")` is one; your own settings '
        'go on top: `get_loss("trl:grpo", clip_high=1.28)`. Where a row has a correction, '
        '`get_loss("trl:grpo+correction")` multiplies by that system\'s correction for rollouts of an inference engine.',
        "",
        "[All losses](README.md)",
        "",
    ]
    for system in dict.fromkeys(one.name.partition(":")[0] for one in known):
        members = [one for one in known if one.name.startswith(f"{system}:")]
        rows = [(f"`{one.name}`", _stands_for(one), _text(one.read_from), _text(one.note)) for one in members]
        lines += [f"## {system}", "", *_table(("preset", "stands for", "read from", "not the same"), rows), ""]
    lines += ["## Not offered", "", *(f"- `{name}`: {_text(why, in_table=False)}" for name, why in UNPUBLISHED.items())]
    return "\n".join(lines) + "\n"


def _stands_for(preset: Preset) -> str:
    parts = [_with(preset.loss, preset.settings)]
    parts += [f"{one.factor:g} times {_with(one.loss, one.settings)}" for one in preset.plus]
    correction = f"; correction {_with(preset.correction, preset.correction_settings)}" if preset.correction else ""
    return f"{' plus '.join(parts)}{correction}"


def _with(name: str, settings: Mapping[str, Any]) -> str:
    if name not in list_losses():
        linked = f"`{name}`"
    else:
        linked = f"[`{name}`]({describe_loss(name).family}.md#{_anchor(name)})"
    return linked + "".join(f", {_code(f'{key}={value!r}')}" for key, value in settings.items())


# A family's page.


def _page(family: str, members: Sequence[LossCard]) -> str:
    head = [MADE, "", f"# {family.capitalize()} losses", "", FAMILIES[family], "", "[All losses](README.md)", ""]
    links = [
        f"- [`{card.name}`](#{_anchor(card.name)}): {_code(card.formula.removesuffix('.'), in_table=False)}"
        for card in members
    ]
    sections = [line for card in members for line in _section(card)]
    return "\n".join([*head, *links, "", *sections]).rstrip() + "\n"


def _section(card: LossCard) -> Iterator[str]:
    yield from (f"## {card.name}", "")
    if card.aliases:
        yield from (f"Also called {', '.join(f'`{alias}`' for alias in card.aliases)}.", "")
    yield from _formula(card)
    if card.when_to_use:
        yield from (f"**When to use** {_text(card.when_to_use, in_table=False)}", "")
    yield from needs_data_like(card)
    if card.metrics:
        yield from ("**Watch**", "")
        yield from (
            f"- `{name}` ({kind}): {_text(watched(name), in_table=False)}." for name, kind in card.metrics.items()
        )
        yield ""
    for paragraph in card.description.split("\n\n") if card.description else ():
        yield from (*_paragraph(paragraph), "")
    if has_curve(card):
        yield from (f"![{card.name}: loss and gradient]({plot_of(card)})", "")
    yield from ("```python", *example_block(card), "```", "")
    yield from _axes(card)
    tensors = (*card.outputs.values(), *card.inputs.values())
    rows = [(f"`{t.name}`", t.shape, _text(t.unit), _text(t.meaning), _need(t, card)) for t in tensors]
    returned = (
        "*returns*",
        card.returns.shape,
        _text(card.returns.unit),
        _text(card.returns.meaning),
        "",
    )
    yield from (*_table(("tensor", "shape", "unit", "meaning", "from"), [*rows, returned]), "")
    settings = [
        (f"`{s.name}`", "required" if s.required else _code(repr(s.default)), _code(s.type), _text(s.bounds))
        for s in card.settings.values()
    ]
    yield from (*_table(("setting", "default", "type", "bounds"), settings), "")
    yield from _remarks(card)


def _formula(card: LossCard) -> Iterator[str]:
    """The formula as math, its clauses in words, and what the symbols of log-probabilities are."""
    said = formula_in_math(card.formula, {*card.settings, *card.inputs, *card.outputs})
    if said.math:
        yield from ("$$", said.math, "$$", "")
    words = re.sub(r"\$\$$", "$$\n", said.words)
    if words:
        yield from (*f"{words}{'' if words.rstrip().endswith('$$') else '.'}".splitlines(), "")
    used = [name for name, tex in LOGPROBS.items() if re.search(re.escape(tex) + r"(?!_)", f"{said.math} {said.words}")]
    if used:
        yield from ("; ".join(f"${LOGPROBS[name]}$ is `{name}`" for name in used) + ".", "")


def _axes(card: LossCard) -> Iterator[str]:
    rows = [
        ("one loss per", card.level),
        ("ratio", card.axes.ratio),
        ("clip", _text(card.axes.clip)),
        ("KL", _text(card.axes.kl)),
        ("reduction", f"{card.reduction} by default"),
    ]
    yield from (*_table(("axis", ""), [row for row in rows if row[1] != "none"]), "")


def _remarks(card: LossCard) -> Iterator[str]:
    for system, how in card.differs.items():
        yield f"- **{system}** {_text(how, in_table=False)}"
    yield f"- **Source** {_linked(_text(card.source, in_table=False))}"
    if card.presets:
        yield f"- **Presets** {', '.join(f'`{preset}`' for preset in card.presets)}"
    if card.laws:
        yield f"- **Obeys the laws** {', '.join(f'`{law}`' for law in card.laws)}"
    yield f"- **Defined in** `{card.defined_in}`"
    yield ""


def _need(tensor: TensorCard, card: LossCard) -> str:
    if tensor.name in card.outputs:
        return "the model"
    return _text(f"the data, {tensor.need}" + (f"; also as `{tensor.keys[1]}`" if len(tensor.keys) > 1 else ""))


def _paragraph(paragraph: str) -> Iterable[str]:
    lines = paragraph.splitlines()
    if any(line.startswith("  ") for line in lines):  # a table or formula inside the docstring
        return ("```", *lines, "```")
    return [_text(" ".join(lines), in_table=False)] if not lines[0].startswith("- ") else lines


# Markdown.


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _text(text: str, *, in_table: bool = True) -> str:
    """Text in which only `code` is markup."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts[::2]]
    joined = "`".join(parts)
    return joined.replace("|", "\\|") if in_table else joined


def _code(text: str, *, in_table: bool = True) -> str:
    return f"`{text.replace('|', chr(92) + '|') if in_table else text}`" if text else ""


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _anchor(name: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w-]", "", name.lower())


# Plots.


def has_curve(card: LossCard) -> bool:
    """Whether a loss has a plot."""
    return curve_of(usable(card.name), 5) is not None


def plot(name: str) -> str | None:
    """The SVG of a loss and its gradient; None where it has no curve. The same bytes every time."""
    curve = curve_of(usable(name))
    if curve is None:
        return None
    desc = f"<desc>{json.dumps(a_few_points(name), separators=(',', ':'))}</desc>"
    return curve_svg(curve).replace("<defs>", f"{desc}\n<defs>", 1)


def a_few_points(name: str) -> list[list[list[float]]]:
    """[line][point] of x, loss and gradient, few and rounded: kept in the plot, so that a test need not draw it."""
    curve = curve_of(usable(name), 7)
    lines = () if curve is None else curve.lines
    return [
        [[float(f"{v:.4g}") for v in point] for point in zip(line.x, line.loss, line.gradient, strict=True)]
        for line in lines
    ]


if __name__ == "__main__":
    main()
