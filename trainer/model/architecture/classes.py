"""What a checkpoint is used as, and which class of transformers loads it."""

from __future__ import annotations

from typing import Any

from ....datums.errors import ModelError
from ..model import Kind


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


def loader_of(kind: Kind, config: Any, *, masked_lm_head: bool = False) -> Any:
    """The class of transformers that loads a checkpoint whole, given what it is used as and its configuration.

    masked_lm_head: an encoder's with its head.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForMultimodalLM,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if kind == "encoder":
        return AutoModelForMaskedLM if masked_lm_head else AutoModel
    if (architecture := _text_decoder(config)) is not None:
        return architecture
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    saved_as = getattr(config, "architectures", None) or [causal]
    if causal in saved_as or not _is_wrapper(config):
        return AutoModelForCausalLM
    is_image = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if is_image else AutoModelForMultimodalLM
