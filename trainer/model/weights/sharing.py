"""`sharing_copy`: a loaded model once more, on the same frozen weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch.nn import Parameter

from ....datums.errors import ModelError
from ..model import LoadedModel


def sharing_copy(model: LoadedModel) -> LoadedModel:
    """A copy with modules, buffers, configuration and tokenizer of its own, whose parameters lie in the model's memory.

    The parameters are objects of their own, so that what asks for a gradient, puts another tensor in a parameter's place or
    wraps a layer does it to one copy alone. Only numbers written in place reach the others, and nothing writes those of frozen
    parameters. Buffers are copied because a forward may write them. Tied parameters are tied in the copy too.

    The copy refers to the model, which is to stay as it was loaded. Raises ModelError where something of the model requires a
    gradient, or where it cannot be copied.
    """
    parameters = list(model.module.parameters())
    if model.value_head is not None or any(p.requires_grad for p in parameters):
        raise ModelError(f"{model.name} is in training: only frozen weights are shared")
    memo: dict[int, Any] = {id(p): _same_memory(p) for p in parameters}
    memo |= {id(state): state for p in parameters if (state := getattr(p, "quant_state", None)) is not None}
    try:
        module, tokenizer = copy.deepcopy((model.module, model.tokenizer), memo)
    except Exception as error:  # an attribute of an architecture may be of any class
        reason = " ".join(str(error).split())
        raise ModelError(f"{model.name} cannot be copied: {type(error).__name__}: {reason}") from error
    own: Any
    for own in module.parameters():
        if (layer := getattr(own, "module", None)) is not None:  # a 4-bit weight knows its layer
            own.module = memo[id(layer)]
    return replace(
        model,
        module=module,
        tokenizer=tokenizer,
        verdicts=dict(model.verdicts),
        fused=dict(model.fused),
        base=model,
    )


def _same_memory(parameter: Parameter) -> Parameter:
    """A parameter of the same class, with the same attributes, on the same memory."""
    if type(parameter) is not Parameter:
        return copy.copy(parameter)  # bitsandbytes' copies share their memory
    other = Parameter(parameter.data, requires_grad=False)
    vars(other).update(vars(parameter))
    return other
