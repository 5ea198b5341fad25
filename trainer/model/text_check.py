"""Does a model that was loaded take text alone, compute its logits by its head, and give gradients?"""

from __future__ import annotations

from typing import Any

import torch

from ...datums.errors import ModelError
from .architecture.masked_lm import other_head
from .model import LoadedModel


def check_text(model: LoadedModel) -> None:
    """Try the model on three tokens; ModelError where it does not take text alone, or computes other logits than its head."""
    tokens = torch.arange(3, device=model.device)[None]
    try:
        with torch.no_grad():
            options = {} if model.kind == "encoder" else {"use_cache": False}
            hidden = model.backbone(tokens % model.vocab_size, **options).last_hidden_state
            if hidden.shape[:2] != tokens.shape:
                raise ValueError(f"hidden states of shape {list(hidden.shape)} for 3 tokens")
            if model.has_head:
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
    options = {} if model.kind == "encoder" else {"use_cache": False}
    own = model.module(tokens, **options).logits.double()
    ours = (
        model.head(masked_lm=True)
        .logits(model.before_head(model.backbone(tokens, **options).last_hidden_state[0]))
        .double()[None]
    )
    tolerance = 32 * torch.finfo(next(model.module.parameters()).dtype).eps * own.abs().max().clamp(min=1.0)
    if own.shape != ours.shape or not (own - ours).abs().max() <= tolerance:
        if model.masked_lm_head:
            raise other_head(model.module, "computes its logits otherwise than by its decoder alone")
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
