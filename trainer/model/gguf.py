"""GGUF files: converted once to safetensors, and kept in a cache folder."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError
from .model import WAYS_TO_NAME


def converted(file: Path) -> Path:
    """The safetensors copy of a GGUF file, made now (about half a minute) unless an earlier run has made it.

    Kept under the file's name, size and SHA-256, so a changed file is converted anew.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {file.name} needs the gguf package: pip install 'lossbook[gguf]'")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{str(file)!r} is not a GGUF file (it does not begin with 'GGUF'). {WAYS_TO_NAME}")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    cache = Path(os.environ.get("LOSSBOOK_CACHE") or "~/.cache/lossbook").expanduser() / "gguf"
    target = cache / f"{file.stem}-{file.stat().st_size}-{digest}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=cache) as scratch:
            finished = Path(scratch) / "model"
            _convert(file, finished)
            try:
                os.replace(finished, target)
            except OSError:  # another process was faster; its copy is as good
                if not target.is_dir():
                    raise
    return target


def _convert(file: Path, target: Path) -> None:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Newer transformers can keep the weights packed, which can be neither trained nor saved.
    plain = getattr(transformers, "GgufConfig", None)
    options = {} if plain is None else {"quantization_config": plain(dequantize=True)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        packed = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, **options
        )
    except Exception as error:  # a damaged file may raise an error of any class
        raise ModelError(f"cannot read the GGUF file {str(file)!r}: {' '.join(str(error).split())}") from error
    config: Any = copy.deepcopy(packed.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # the same architecture without the mark of quantization, which refuses to be saved
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.generation_config = packed.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
