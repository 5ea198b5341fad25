"""Loading a model by name: built in code, from a directory, a GGUF file or the hub; and what the trainer asks of it."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ...datums.errors import ModelError, did_you_mean
from ..head.logprobs import Head
from .lora import LoraSettings, effective_weight
from .tiny import build_tiny_encoder, build_tiny_model, build_tiny_tokenizer

Kind = Literal["decoder", "encoder"]

BUILT_IN = ("tiny", "tiny-encoder")
WAYS_TO_NAME = (
    "A model is named as 'tiny' or 'tiny-encoder' (built in code), a directory with config.json and safetensors "
    "weights, a .gguf file, or a hub id such as 'HuggingFaceTB/SmolLM2-135M'"
)


@dataclass
class LoadedModel:
    """A transformers module with its tokenizer, and where they are.

    module       the causal language model or encoder itself; `add_lora` puts its layers inside it
    lora         how the adapter was made, or None when there is none
    adapter      peft's wrapper around the same module, for reading and writing adapter files
    value_head   from hidden states to one number a position, or None; it lies beside the module, not in it
    compute_dtype of products, where that is narrower than the weights; None for their own
    head_choice  strategy and backend that the head took last; None before
    in_blocks    whether it can read a packed row block by block; None until that was tried (`block_attention`)

    Fresh from `load_model` nothing requires a gradient: call `train_all_weights` or `lora.add_lora`.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    kind: Kind
    device: torch.device
    lora: LoraSettings | None = None
    adapter: Any = field(default=None, repr=False)
    value_head: nn.Linear | None = None
    compute_dtype: torch.dtype | None = None
    head_choice: str | None = None
    in_blocks: bool | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that require a gradient, sorted by name; a tied parameter appears once."""
        found = dict(self.module.named_parameters())
        if self.value_head is not None:
            found |= {f"value_head.{name}": value for name, value in self.value_head.named_parameters()}
        return {name: value for name, value in sorted(found.items()) if value.requires_grad}

    def train_all_weights(self) -> LoadedModel:
        """Make every parameter require a gradient, in float32 at least; returns this model.

        A bfloat16 weight has 8 bits of mantissa: an optimizer step smaller than 1/512 of it would be rounded away. A model
        that was loaded in bfloat16 still computes its products in it.
        """
        loaded = next(self.module.parameters()).dtype
        if torch.promote_types(loaded, torch.float32) != loaded:
            self.compute_dtype = loaded
        for parameter in self.module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.requires_grad_(True)
        return self

    @property
    def product_dtype(self) -> torch.dtype:
        """What products are computed in: the weights' dtype, unless `compute_dtype` is narrower."""
        return self.compute_dtype or next(self.module.parameters()).dtype

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to `compute_dtype` where there is one; for forwards."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self._transformer.config

    @property
    def backbone(self) -> nn.Module:
        """The transformer below the head: its forward returns `last_hidden_state` [batch, length, d]. LoRA included."""
        return self.module if self.kind == "encoder" else self._transformer.base_model

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can read."""
        return self._transformer.get_input_embeddings().weight.shape[0]

    @property
    def max_length(self) -> int | None:
        """The longest sequence in tokens, None when the architecture sets no limit."""
        limit = getattr(self._transformer.config.get_text_config(), "max_position_embeddings", None)
        if self.kind == "encoder" and limit is not None:  # RoBERTa's positions begin at 2; its tokenizer knows
            limit = min(limit, int(getattr(self.tokenizer, "model_max_length", limit)))
        return limit

    def head(self) -> Head:
        """The map from hidden states to logits.

        With LoRA on the head, the weight is a new tensor W + scaling·B A with a graph to A and B: ask for a head
        once for each backward. Raises ModelError for an encoder.
        """
        layer = None if self.kind == "encoder" else self._transformer.get_output_embeddings()
        if layer is None:
            raise ModelError(f"{self.name} is an encoder: it gives embeddings, and has no head to give logprobs with")
        softcap, scale = _cap_and_scale(self._transformer.config)
        base = getattr(layer, "base_layer", layer)
        return Head(effective_weight(layer), getattr(base, "bias", None), softcap, scale)

    @property
    def _transformer(self) -> Any:  # a PreTrainedModel, which type checkers see as plain nn.Module
        return self.module


def load_model(
    base_model: str, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> LoadedModel:
    """Load a model and its tokenizer, in eval mode and with nothing requiring a gradient.

    base_model  "tiny", "tiny-encoder", a directory (config.json and safetensors, or a single .gguf), the path of a
                .gguf file, or a hub id. A GGUF is converted once and kept under $LOSSBOOK_CACHE (~/.cache/lossbook)
    device      by default the first GPU, else the CPU
    dtype       of the parameters; by default float32 on a CPU and bfloat16 elsewhere

    Code that comes with a model is never run, and weights are read from safetensors or GGUF only, never pickles.
    Raises ModelError when the model cannot be found, is damaged or is of an unsupported kind.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    if base_model in BUILT_IN:
        kind: Kind = "decoder" if base_model == "tiny" else "encoder"
        module = build_tiny_model() if kind == "decoder" else build_tiny_encoder()
        tokenizer = build_tiny_tokenizer()
        for parameter in module.parameters():  # not module.to(dtype), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    else:
        module, tokenizer, kind = _load_pretrained(base_model, _find(base_model), dtype)
    model = LoadedModel(base_model, module.to(place).eval().requires_grad_(False), tokenizer, kind, place)  # type: ignore[arg-type]
    if kind == "decoder":
        _check_head(model)
    return model


# --- finding and reading ----------------------------------------------------------------------------------------------


def _find(name: str) -> str:
    """A directory to load from, or the name itself when it can only be a hub id."""
    path = Path(name or "(no name)").expanduser()
    if path.is_file():
        return str(_converted(path))
    if path.is_dir():
        return _model_directory(path)
    if name.endswith(".gguf") or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        raise ModelError(f"there is no file or directory {str(path.absolute())!r}. {WAYS_TO_NAME}")
    if (
        hint := "" if "/" in name else did_you_mean(name, BUILT_IN, cutoff=0.75)
    ):  # else the hub is asked for it, for long
        raise ModelError(f"there is no model {name!r}.{hint} {WAYS_TO_NAME}")
    return name


def _model_directory(path: Path) -> str:
    if (path / "config.json").is_file():
        return str(path)
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{str(path)!r} holds a LoRA adapter, not a model: load the model it was trained on, then call "
            "load_adapter_into(model, directory)"
        )
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return str(_converted(files[0]))
    found = f"several GGUF files ({', '.join(file.name for file in files)}): name one" if files else "no config.json"
    raise ModelError(f"directory {str(path)!r} holds {found}. {WAYS_TO_NAME}")


def _load_pretrained(name: str, source: str, dtype: torch.dtype) -> tuple[nn.Module, Any, Kind]:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = _kind(name, config)
        loader: Any = AutoModelForCausalLM if kind == "decoder" else AutoModel
        module, report = loader.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # damaged files raise anything at all, tokenizers a bare Exception
        where = f"directory {source!r}" if os.path.isdir(source) else "hub id (no such file or directory here)"
        reason = " ".join(str(error).split())
        raise ModelError(f"cannot load the model {name!r}, taken as a {where}: {reason}. {WAYS_TO_NAME}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelError(
            f"the weights of {name!r} lack {len(missing)} parameters, which would stay random: {', '.join(missing[:3])}"
        )
    return module, tokenizer, kind


def _kind(name: str, config: Any) -> Kind:
    """Decoder if the checkpoint was saved with a causal language-model head, or its type knows nothing else."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"the weights of {name!r} are stored quantized; name an unquantized copy or a GGUF file")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} is an encoder-decoder ({config.model_type}); only decoders and encoders are supported"
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    bidirectional = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    saved_as = getattr(config, "architectures", None) or [causal]
    return "decoder" if causal is not None and causal in saved_as and not bidirectional else "encoder"


# --- GGUF -------------------------------------------------------------------------------------------------------------


def _converted(file: Path) -> Path:
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
    except Exception as error:  # what a damaged file raises is anyone's guess
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


# --- the head ---------------------------------------------------------------------------------------------------------


def _cap_and_scale(config: Any) -> tuple[float | None, float]:
    """What an architecture does to the product of head and hidden states, from its config."""
    text = config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "output_logit_soft_cap", None)
    if text.model_type == "recurrent_gemma":
        softcap = text.logits_soft_cap
    scale = float(getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or 1.0)
    return softcap, scale * divisor if text.model_type == "hyperclovax" else scale / divisor


@torch.no_grad()
def _check_head(model: LoadedModel) -> None:
    """Compare head and backbone with the module's own logits on three tokens: an unknown architecture must not be
    trained on logits that are not its own."""
    tokens = torch.arange(3, device=model.device)[None] % model.vocab_size
    own = model.module(tokens).logits.double()
    ours = model.head().logits(model.backbone(tokens).last_hidden_state).double()
    tolerance = 32 * torch.finfo(next(model.module.parameters()).dtype).eps * own.abs().max().clamp(min=1.0)
    if own.shape != ours.shape or not (own - ours).abs().max() <= tolerance:
        raise ModelError(
            f"{model.name!r} computes its logits in a way that lossbook does not know (model type "
            f"{model._transformer.config.model_type!r}), or gives NaN; please report it"
        )
