"""Write the plans that scaling.md shows, from `lossbook doctor plan`. `make docs` runs this script.

python docs/make_scaling_page.py
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

from lossbook.cookbook.cli import main as lossbook
from lossbook.cookbook.doctor.plan.command import Asked
from lossbook.cookbook.doctor.plan.plan import Plan

PAGE = Path(__file__).resolve().parent / "scaling.md"
#: Between these lines stands the table; a console block that begins with a plan's command is followed by what it prints.
BEGIN, END = "<!-- the table of plans: made by docs/make_scaling_page.py -->\n", "<!-- its end -->\n"
BLOCK = re.compile(r"(?<=^```console\n)\$ lossbook (doctor plan [^\n]*)\n(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
HEAD = """| model | trained | GPUs | at rest, GB | at most, GB | largest micro-batch | sampling, GB | sent a micro-batch, GB | efficiency |
|---|---|---|---|---|---|---|---|---|
"""
MODELS, GPUS, TOKENS = ("llama-7b", "llama-70b"), (8, 64, 512), 8192


def main() -> None:
    """Write the page again."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def written(page: str) -> str:
    """The page with its table and the outputs of its commands as they are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    page = f"{before}{BEGIN}{HEAD}{''.join(rows())}{END}{after}"
    return BLOCK.sub(lambda block: f"$ lossbook {block[1]}\n{printed(block[1])}", page)


def rows() -> list[str]:
    """A row of the table for each plan."""
    return [row(model, all_weights, gpus) for model in MODELS for all_weights in (True, False) for gpus in GPUS]


def row(model: str, all_weights: bool, gpus: int) -> str:
    """One plan in a line."""
    asked = Asked(gpus, model, all_weights=all_weights, checkpoint_layers=True, tokens_per_micro_batch=TOKENS)
    plan = asked.plan()
    trained = "all weights" if all_weights else "adapters"
    cells = [model, trained, str(gpus), f"{plan.memory.at_rest / 1e9:.1f}", at_most(plan), f"{plan.largest:,}"]
    cells += [
        f"{plan.memory.sampling / 1e9:.1f}{'' if plan.can_sample else ' (too much)'}",
        f"{plan.traffic.bytes / 1e9:.1f}",
    ]
    cells += [f"{plan.times.efficiency_alone:.2f} to {plan.times.efficiency:.2f}"]
    return f"| {' | '.join(cells)} |\n"


def at_most(plan: Plan) -> str:
    """The most that training takes, and whether that fits."""
    return f"{plan.memory.training / 1e9:.1f}{'' if plan.fits else ' (too much)'}"


def printed(command: str) -> str:
    """What the command prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        lossbook(shlex.split(command))
    return output.getvalue()


if __name__ == "__main__":
    main()
