"""A loss file and its test, which pass as they are written, to edit."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...datums import disk
from ...datums.errors import ConfigError, UnknownLossError

Per = Literal["token", "sequence", "pair", "batch"]
Family = Literal["supervised", "policy", "preference", "distillation", "embedding", "value"]

#: The templates: family and what one value is about. Of several kinds of a family, and of several families of a kind, the
#: first is meant where only the other is named.
TEMPLATES: tuple[tuple[Family, Per], ...] = (
    ("supervised", "token"),
    ("supervised", "sequence"),
    ("policy", "token"),
    ("policy", "sequence"),
    ("preference", "pair"),
    ("distillation", "token"),
    ("embedding", "batch"),
    ("value", "token"),
)
#: What each recipe's data carry for a loss of the family; None: no recipe trains it alone.
RECIPES: dict[Family, str | None] = {
    "supervised": "sft --data FILE",
    "policy": "rl --task letter_counting",
    "preference": "dpo --data FILE",
    "distillation": "distill --data FILE --teacher MODEL",
    "embedding": "embed --data FILE",
    "value": None,
}


@dataclass(frozen=True)
class NewLoss:
    """The files that were written, and the template that they were made from."""

    loss: Path
    test: Path
    family: Family
    per: Per


def write_loss(name: str, folder: Path, family: Family | None = None, per: Per | None = None) -> NewLoss:
    """Write `NAME.py` and `test_NAME.py` into a folder; neither file may be there.

    Raises ConfigError for a name that Python or the registry has already, for a family without this kind, and for files that
    are there; OSError where they cannot be written.
    """
    check_name(name)
    kind = template_of(family, per)
    files = [folder / f"{name}.py", folder / f"test_{name}.py"]
    if there := [path for path in files if path.exists() or path.is_symlink()]:
        raise ConfigError(
            f"{there[0]} is there already, and nothing is overwritten: choose another name, or --out FOLDER"
        )
    disk.make_folder(folder)
    for path, ending in zip(files, ("", "_test"), strict=True):
        template = Path(__file__).with_name(f"{'_'.join(kind)}{ending}.py.txt").read_text(encoding="utf-8")
        disk.write_file(path, re.sub(r"\bNAME\b", name, template))
    return NewLoss(files[0], files[1], *kind)


def template_of(family: Family | None, per: Per | None) -> tuple[Family, Per]:
    """The template of a family and a kind, of which either may be left out. Raises ConfigError where there is none."""
    for kind in TEMPLATES:
        if family in (None, kind[0]) and per in (None, kind[1]):
            return kind
    own = [each for its_family, each in TEMPLATES if its_family == family]
    raise ConfigError(
        f"there is no template of the family {family} per {per}, only per {' or '.join(own)}. Leave one of --family and "
        "--per out"
    )


def check_name(name: str) -> None:
    """Raise ConfigError for a name that cannot be a function's, a module's and a loss's."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii() or name.startswith("_"):
        likely = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        likely = f"my_{likely}" if not likely or likely[0].isdigit() or keyword.iskeyword(likely) else likely
        raise ConfigError(
            f"{name!r} cannot name a Python function: take letters, digits and _, such as {likely.rstrip('_')!r}"
        )
    if _is_registered(name):
        raise ConfigError(
            f"{name!r} is the id of a loss already (`lossbook losses list`): choose another name, such as 'my_{name}'"
        )
    spec = importlib.util.find_spec(name)
    if spec is not None and not _is_here(spec.origin):
        raise ConfigError(
            f"{name!r} is the name of a Python module ({spec.origin or name}), which {name}.py would hide or be hidden by: "
            f"choose another name, such as 'my_{name}'"
        )


def _is_registered(name: str) -> bool:
    from ...losses import UNPUBLISHED, list_losses
    from ...losses.registry import spec_of

    list_losses()  # loads plug-ins
    try:
        spec_of(name)
    except UnknownLossError:
        return name in UNPUBLISHED
    return True


def _is_here(origin: str | None) -> bool:
    """Whether a module lies in the working folder, as one that was written before does."""
    return origin is not None and Path(origin).resolve().parent == Path.cwd()
