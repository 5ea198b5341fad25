"""`lossbook losses new`: start a loss of one's own."""

from __future__ import annotations

from pathlib import Path

import tyro

from ..scaffold.new_loss import RECIPES, Family, NewLoss, Per, write_loss


def new_loss(
    name: tyro.conf.Positional[str], family: Family | None = None, per: Per | None = None, out: Path = Path()
) -> None:
    """Write a loss and its test, NAME.py and test_NAME.py, which work as they stand, to edit. Nothing is overwritten.

    Args:
        name: the loss's name: letters, digits and _.
        family: what it reads: supervised (logprobs), policy (and sampling_logprobs, advantages), preference (pairs, and
            ref_logprobs), distillation (and teacher_logprobs), embedding (embeddings), value (values, and returns).
        per: what one value of it is about; by default the family's usual kind.
        out: the folder to write in.
    """
    written = write_loss(name, out, family, per)
    print(f"{written.loss}\n{written.test}\n\na {written.family} loss per {written.per}; next:")
    print("\n".join(f"  {line}" for line in _next_commands(written)))


def _next_commands(written: NewLoss) -> list[str]:
    """What to run next: the checks, the card, a run."""
    name = written.loss.stem
    place = f"{name}:{name}"
    recipe = RECIPES[written.family]
    train = f"lossbook train {recipe} --loss {place}" if recipe else f"lossbook losses diff {place} value_mse"
    folder = written.loss.parent
    enter = [] if folder.resolve() == Path.cwd() else [f"cd {folder}"]
    return [
        *enter,
        f"lossbook losses check {place}",
        f"lossbook losses show {place}",
        train,
        f"pytest {written.test.name}",
    ]
