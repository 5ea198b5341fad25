"""`model_info`: what a training client says about its model."""

from __future__ import annotations

from ..engine.settings import EngineSettings
from ..model.lora.lora import adapted_names
from ..model.model import LoadedModel
from ..model.weights.four_bit import number_count
from ..model.weights.narrow import casts_once, linear_parameters
from ..packing.hidden import attention_name, shares_prefixes
from ..packing.probes import failed_probes, verdict
from ..responses import ModelData, ModelInfo
from ..sampling.summary import cache_of


def model_info(model: LoadedModel, settings: EngineSettings, model_id: str) -> ModelInfo:
    """A model in training, and how it runs."""
    lora = model.lora
    return ModelInfo(
        model_id=model_id,
        model_name=model.name,
        is_lora=lora is not None,
        lora_rank=None if lora is None else lora.rank,
        model_data=ModelData(model.name, str(model.config.model_type)),
        trainable_parameters=sum(p.numel() for p in model.trainable().values()),
        device=str(model.device),
        batching=settings.batching or "padded",
        attention=attention_name(model, settings.batching),
        cuts_tails=bool(verdict(model, "cut")),
        shares=shares_prefixes(model, settings.batching),
        cache=cache_of(model),
        reasons=failed_probes(model),
        fused=dict(model.fused),
        head=model.head_choice,
        kind=model.kind,
        masked_lm_head=model.masked_lm_head,
        dtype=str(model.product_dtype).removeprefix("torch."),
        narrow_weights=len(linear_parameters(model)) if casts_once(model) else 0,
        max_length=model.max_length,
        value_head=model.value_head is not None,
        vocab_size=model.vocab_size,
        end_tokens=tuple(sorted(model.end_tokens)),
        base_weights=model.base_weights,
        lora_targets=adapted_names(model),
        lora_left_out={} if lora is None else lora.left_out,
        parameters=number_count(model),
    )
