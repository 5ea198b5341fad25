"""A GGUF file's safetensors copy, made once and kept in a cache folder."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from ....datums import disk
from ....datums.errors import ModelError
from ..model import WAYS_TO_NAME
from .tokenizer import read_tokenizer

#: Goes up when the same file is converted otherwise, so that copies of earlier versions are not taken.
#: 2: the tokenizer is the model's own.
VERSION = 2


def converted(file: Path) -> Path:
    """The safetensors copy of a GGUF file, made now (about half a minute) unless an earlier run has made it.

    Kept under the file's name, size, SHA-256 and the conversion's version, so a changed file is converted anew.
    Raises ModelError, naming the file, where it is damaged, or its tokenizer or its weights are not read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {file.name} needs the gguf package: pip install 'lossbook[gguf]'")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{str(file)!r} is not a GGUF file (it does not begin with 'GGUF'). {WAYS_TO_NAME}")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    cache = Path(os.environ.get("LOSSBOOK_CACHE") or "~/.cache/lossbook").expanduser() / "gguf"
    target = cache / f"{file.stem}-{file.stat().st_size}-{digest}-{VERSION}"
    if not target.is_dir():
        with disk.new_folder(target, replace=False) as folder:  # where another process was faster, its copy is as good
            _convert(file, folder)
    return target


def _convert(file: Path, target: Path) -> None:
    import transformers
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    # Newer transformers can keep the weights packed, which can be neither trained nor saved.
    plain = getattr(transformers, "GgufConfig", None)
    options = {} if plain is None else {"quantization_config": plain(dequantize=True)}
    try:
        reader = GGUFReader(file)
        tokenizer = read_tokenizer(file, reader)
        _check_sizes(file, reader, len(tokenizer))
        loader: Any = AutoModelForCausalLM
        packed, report = loader.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True, **options
        )
    except ModelError:
        raise
    except Exception as error:  # a damaged file may raise an error of any class
        raise ModelError(f"cannot read the GGUF file {str(file)!r}: {' '.join(str(error).split())}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the GGUF file {str(file)!r} lacks {len(missing)} parameters, which would stay random: "
            f"{', '.join(missing[:3])}"
        )
    config: Any = copy.deepcopy(packed.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # the same architecture without the mark of quantization, which refuses to be saved
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.generation_config = packed.generation_config
    with disk.writing(target):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _check_sizes(file: Path, reader: Any, tokens: int) -> None:
    """ModelError where the table of tensors has more layers than the file says, or fewer rows than it has tokens."""
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    layers = {int(name.split(".")[1]) for name in shapes if name.startswith("blk.")}
    architecture = str(reader.fields["general.architecture"].contents())
    field = reader.fields.get(f"{architecture}.block_count")
    count = len(layers) if field is None else int(field.contents())
    if layers != set(range(count)):
        raise ModelError(
            f"the GGUF file {str(file)!r} says {architecture}.block_count = {count}, but has the tensors of "
            f"{len(layers)} layers (the last is {max(layers, default=None)})"
        )
    rows = shapes.get("token_embd.weight", [0, tokens])[-1]
    if rows < tokens:
        raise ModelError(f"the GGUF file {str(file)!r} has {tokens} tokens, but an embedding of {rows} rows")
