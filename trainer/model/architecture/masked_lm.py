"""The head of a masked language model: a transformation of hidden states, and a decoder that multiplies what it gives.

Architectures build the transformation in different ways and places (a dense layer, an activation and a norm in most). Their own
forward is what is run: on given hidden states, up to the decoder, whose [tokens, V] logits are never computed.
"""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import Tensor, nn

from ....datums.errors import ModelError

#: How an error ends that says which parameters of the head are missing.
WAYS_TO_A_HEAD = (
    ". Without them it has no masked-LM head: name a checkpoint that was saved with one (its config.json has architectures "
    "...ForMaskedLM or ...ForPreTraining, as that of google-bert/bert-base-uncased), or leave masked_lm_head out"
)


class _Reached(Exception):  # no error
    """What reached the decoder."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("the decoder is reached")
        self.hidden = hidden


class _Given(nn.Module):
    """Stands for the transformer below the head: gives hidden states that are there already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = [hidden]  # in a list: a module's own tensors would be its buffers

    def forward(self, *_: Any, **__: Any) -> Any:
        """The hidden states, as transformers' base models return them."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=cast(Any, self._hidden[0]))


def before_decoder(module: nn.Module, hidden: Tensor) -> Tensor:
    """[M, d'] of last hidden states [M, d]: what the decoder of a masked language model multiplies, with its graph.

    Raises ModelError for an architecture whose head cannot be run on hidden states alone, or calls no decoder.
    """
    whole: Any = module
    above = copy.copy(whole)  # shares all layers; only the one below the head is another
    above._modules = {**whole._modules, whole.base_model_prefix: _Given(hidden.unsqueeze(0))}
    decoder = whole.get_output_embeddings()
    if decoder is None or whole.base_model_prefix not in whole._modules:
        raise other_head(module, "has no decoder that reads what a base model gives")
    handle = decoder.register_forward_pre_hook(_stop)
    try:
        type(whole).forward(above, input_ids=None)
    except _Reached as reached:
        return reached.hidden.squeeze(0)
    except Exception as error:  # an architecture may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise other_head(module, f"does not run on hidden states alone: {reason}") from error
    finally:
        handle.remove()
    raise other_head(module, "never calls its decoder")


def other_head(module: nn.Module, what: str) -> ModelError:
    """The error for a head of another kind. what: what it does."""
    return ModelError(
        f"{type(module).__name__} has a masked-LM head of another kind than is supported: it {what}. Leave masked_lm_head out, or "
        "take a model such as BERT, DistilBERT, RoBERTa or ModernBERT"
    )


def check_class(name: str, config: Any) -> None:
    """Raise ModelError for an encoder of a type that transformers has no masked language model of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name!r} ({config.model_type}) cannot be loaded with a masked-LM head: transformers has no masked language model of "
            "this type. Leave masked_lm_head out, or name another encoder"
        )


def _stop(_: nn.Module, given: tuple[Any, ...]) -> None:
    raise _Reached(given[0])
