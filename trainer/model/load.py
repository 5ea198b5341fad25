"""Loading a model by name: one built in code, a directory, a GGUF file or a hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...datums.chat.limits import limit_templates
from ...datums.errors import ModelError, WorkerError, did_you_mean, panics_as
from .defaults import usual_defaults
from .gguf.convert import converted
from .headers import Memory, check_headers, check_layers, check_missing, total_memory
from .model import WAYS_TO_NAME, BaseWeights, Kind, LoadedModel
from .tiny import build_tiny_encoder, build_tiny_model, build_tiny_tokenizer
from .weights.four_bit import check_base_weights, quantize_base

BUILT_IN = ("tiny", "tiny-encoder")
#: The process that loaded a model first. What is forked from it inherits torch's threads as stopped ones.
_first_process: int | None = None


@usual_defaults()
def load_model(
    base_model: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    base_weights: BaseWeights = "full",
) -> LoadedModel:
    """Load a model and its tokenizer, in eval mode and with nothing requiring a gradient.

    base_model  "tiny", "tiny-encoder", a directory (config.json and safetensors, or a single .gguf), the path of a
                .gguf file, or a hub id. A GGUF is converted once and kept under $LOSSBOOK_CACHE (~/.cache/lossbook)
    device      by default the first GPU, else the CPU
    dtype       of the parameters; by default float32 on a CPU and bfloat16 elsewhere
    base_weights  "4bit" quantizes the linear layers of a decoder's layers: see `four_bit`

    Code that comes with a model is never run, and weights are read from safetensors or GGUF only, never pickles.
    Raises ModelError when the model cannot be found, is damaged or is of an unsupported kind, and for a device that is not
    there; WorkerError in a forked process in which torch would wait for threads that stayed in its parent.
    """
    _check_not_forked()
    check_base_weights(base_weights)
    limit_templates()  # of every tokenizer, also where a recipe or a script calls it itself
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    if base_model in BUILT_IN:
        kind: Kind = "decoder" if base_model == "tiny" else "encoder"
        module = build_tiny_model() if kind == "decoder" else build_tiny_encoder()
        tokenizer = build_tiny_tokenizer()
        for parameter in module.parameters():  # not module.to(dtype), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    else:
        module, tokenizer, kind = _load_pretrained(base_model, _find(base_model), dtype, place)
    model = LoadedModel(base_model, module.eval().requires_grad_(False), tokenizer, kind, place)
    if base_weights == "4bit":
        quantize_base(model)  # layer by layer: the device never holds the full weights
    module.to(place)  # type: ignore[arg-type]
    _check_text(model)
    return model


def _check_not_forked() -> None:
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid() and torch.get_num_threads() > 1:
        raise WorkerError(
            f"this process was forked from one (pid {_first_process}) that computed with several threads, which stayed there: "
            "torch would wait for them for ever. Start processes with 'spawn' (multiprocessing.get_context('spawn')), or call "
            "torch.set_num_threads(1) first"
        )


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises ModelError where there is none."""
    try:
        device = torch.device(name)
        if float(torch.ones(1, device=device)) == 1.0:  # fails on "meta", which holds no numbers
            return device
        raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        count = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise ModelError(f"device {str(name)!r} cannot be used: {reason}. There is {', '.join(there)}") from None


def _find(name: str) -> str:
    """A directory to load from, or the name itself when it can only be a hub id."""
    path = Path(name or "(no name)").expanduser()
    if path.is_file():
        return str(converted(path))
    if path.is_dir():
        return _model_directory(path)
    if name.endswith(".gguf") or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        raise ModelError(f"there is no file or directory {str(path.absolute())!r}. {WAYS_TO_NAME}")
    # The hub takes long to say that it has no such model, so a likely typing error is refused here.
    if hint := "" if "/" in name else did_you_mean(name, BUILT_IN, cutoff=0.75):
        raise ModelError(f"there is no model {name!r}.{hint} {WAYS_TO_NAME}")
    return name


def is_at_hand(name: str) -> bool:
    """Whether a model is built in, lies in a folder or file of this name, or is in the hub's cache: nothing need be fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name in BUILT_IN or os.path.exists(os.path.expanduser(name)):
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


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
        return str(converted(files[0]))
    contents = f"several GGUF files ({', '.join(file.name for file in files)}): name one" if files else "no config.json"
    raise ModelError(f"directory {str(path)!r} holds {contents}. {WAYS_TO_NAME}")


def _load_pretrained(name: str, source: str, dtype: torch.dtype, place: torch.device) -> tuple[nn.Module, Any, Kind]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        check_layers(name, source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = kind_of(name, config)
        loader = loader_of(kind, config)
        check_headers(name, source, config, loader, Memory(dtype, total_memory(place)))
        module, report = loader.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        with panics_as(ModelError, f"the tokenizer of {name!r}"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # damaged files raise errors of any class; tokenizers raise a bare Exception
        where = f"directory {source!r}" if os.path.isdir(source) else "hub id (no such file or directory here)"
        reason = " ".join(str(error).split()).partition(" Model type should be one of")[0]  # hundreds of them
        raise ModelError(f"cannot load the model {name!r}, taken as a {where}: {reason}. {WAYS_TO_NAME}") from error
    check_missing(name, report["missing_keys"])
    return module, tokenizer, kind


def kind_of(name: str, config: Any) -> Kind:
    """Decoder if the checkpoint was saved with a causal language-model head, or its type has no other."""
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
    is_causal = (causal is not None and causal in saved_as) or _text_decoder(config) is not None
    return "decoder" if not bidirectional and (_is_wrapper(config) or is_causal) else "encoder"


def _text_decoder(config: Any) -> Any:
    """The class that a decoder was saved as, where no Auto class loads it: the text side of a model that reads images too."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in getattr(config, "architectures", None) or ():
        if (
            name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
            and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        ):
            architecture = getattr(transformers, name)
            return architecture if type(config) is architecture.config_class else None
    return None


def _is_wrapper(config: Any) -> bool:
    """Whether the checkpoint was saved as a decoder that reads images, video or sound beside text."""
    return bool(set(getattr(config, "architectures", None) or ()) & _wrappers(config.model_type))


def _wrappers(model_type: str) -> set[str]:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    maps: list[Any] = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES]
    return {str(names[model_type]) for names in maps if model_type in names}


def loader_of(kind: Kind, config: Any) -> Any:
    """The class of transformers that loads a checkpoint whole, given what it is used as and its configuration."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if kind == "encoder":
        return AutoModel
    if (architecture := _text_decoder(config)) is not None:
        return architecture
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    saved_as = getattr(config, "architectures", None) or [causal]
    if causal in saved_as or not _is_wrapper(config):
        return AutoModelForCausalLM
    is_image = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if is_image else AutoModelForMultimodalLM


def _check_text(model: LoadedModel) -> None:
    """Try the model on three tokens; ModelError where it does not take text alone, or computes other logits than its head."""
    tokens = torch.arange(3, device=model.device)[None]
    try:
        with torch.no_grad():
            options = {} if model.kind == "encoder" else {"use_cache": False}
            hidden = model.backbone(tokens % model.vocab_size, **options).last_hidden_state
            if hidden.shape[:2] != tokens.shape:
                raise ValueError(f"hidden states of shape {list(hidden.shape)} for 3 tokens")
            if model.kind == "decoder":
                _check_head(model)
    except ModelError:
        raise
    except Exception as error:  # an architecture may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{model.name!r} ({type(model.module).__name__}) cannot be used for text alone: {reason}. Only decoders and "
            "encoders of text are supported, also those inside of models that read images too"
        ) from error
    _check_gradient(model, tokens % model.vocab_size)


def _check_gradient(model: LoadedModel, tokens: torch.Tensor) -> None:
    """ModelError where a gradient cannot come back through the model in eval mode, in which it is trained (Reformer)."""
    zero = torch.zeros((), device=model.device, dtype=next(model.module.parameters()).dtype, requires_grad=True)
    embeddings: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    hook = embeddings.register_forward_hook(lambda _module, _given, output: output + zero)
    options = {} if model.kind == "encoder" else {"use_cache": False}
    try:
        with torch.enable_grad():
            total = model.backbone(tokens, **options).last_hidden_state.sum()
            if total.requires_grad:  # some look their embeddings up without calling the layer
                torch.autograd.grad(total, [zero], allow_unused=True)
    except Exception as error:  # an architecture may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{model.name!r} ({type(model.module).__name__}) cannot be trained as it is, in eval mode without dropout: {reason}"
        ) from error
    finally:
        hook.remove()


@torch.no_grad()
def _check_head(model: LoadedModel) -> None:
    """Compare our logits with the module's own on three tokens; ModelError where an architecture computes others."""
    tokens = torch.arange(3, device=model.device)[None] % model.vocab_size
    own = model.module(tokens, use_cache=False).logits.double()
    ours = model.head().logits(model.backbone(tokens, use_cache=False).last_hidden_state).double()
    tolerance = 32 * torch.finfo(next(model.module.parameters()).dtype).eps * own.abs().max().clamp(min=1.0)
    if own.shape != ours.shape or not (own - ours).abs().max() <= tolerance:
        raise ModelError(
            f"{model.name!r} ({type(model.module).__name__}) {_other_head(own)}. Only heads of one product are supported, with "
            "a bias, a scale and a soft cap"
        )


def _other_head(logits: torch.Tensor) -> str:
    if not logits.isfinite().all():
        return "gives logits that are not finite"
    return (
        "computes its logits in another way than by its output layer alone, such as through a transformation before it"
    )
