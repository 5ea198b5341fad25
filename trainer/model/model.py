"""`LoadedModel`: a transformers module with its tokenizer, head and dtype, as the trainer uses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...datums.errors import ModelError
from ..choices import BaseWeights
from ..head.logprobs import Head
from ..ranks import ALONE, Ranks
from .architecture.masked_lm import before_decoder
from .linear import LoraSettings, effective_weight
from .verdict import Verdict

T = TypeVar("T")
Kind = Literal["decoder", "encoder"]

WAYS_TO_NAME = (
    "A model is named as 'tiny' or 'tiny-encoder' (built in code), a directory with config.json and safetensors "
    "weights, a .gguf file, or a hub id such as 'HuggingFaceTB/SmolLM2-135M'"
)


@dataclass
class LoadedModel:
    """A transformers module with its tokenizer, and where they are.

    module            the causal language model or encoder itself; `add_lora` puts its layers inside it
    lora              how the adapter was made, or None when there is none
    adapter           peft's wrapper around the same module, for reading and writing adapter files
    value_head        from hidden states to one number per position, or None; it is not part of the module
    compute_dtype     of products, where that is narrower than the weights; None for their own
    head_choice       strategy and backend of the last call of the head; None before the first
    verdicts          what probes of this model saw, by probe; each is tried once
    fused             how many parts run in fused kernels, by kind; see `fused.fuse_layers`
    base_weights      "4bit" where the linear layers of its layers are quantized; see `four_bit`
    adapters_drop     whether the adapters' dropout is on, as it is inside `forward_backward`
    moment            refers to what snapshots share of the parameters as they are now; None where nothing shares them
    ranks             the processes that train it together; a single one unless it is sharded
    root              the module that holds all sharded parameters, and whose forward gathers them; None where none are
    length_limit      the longest sequence in tokens that it is given, where that is set below the architecture's; see `limit_length`
    routers           the modules that choose experts, once `routing` was tried
    routes            to which experts the forward that runs now sends tokens; None for those that the routers choose
    base              the model as it was loaded, whose weights this one shares with others; None where they are its own
    masked_lm_head    whether the module of an encoder is a masked language model, with its head; see `before_head`

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
    verdicts: dict[str, Verdict] = field(default_factory=dict, repr=False)
    fused: dict[str, int] = field(default_factory=dict)
    base_weights: BaseWeights = "full"
    adapters_drop: bool = False
    moment: Callable[[], Any] | None = field(default=None, repr=False)
    ranks: Ranks = ALONE
    root: nn.Module | None = field(default=None, repr=False)
    length_limit: int | None = None
    routers: Any = field(default=None, repr=False)
    routes: Tensor | None = field(default=None, repr=False)
    base: LoadedModel | None = field(default=None, repr=False)
    masked_lm_head: bool = False

    @property
    def drops(self) -> bool:
        """Whether dropout is on. Each position is then dropped on its own, so no prefix is like another."""
        return self.module.training or self.adapters_drop

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that require a gradient, sorted by name; a tied parameter appears once."""
        parameters = dict(self.module.named_parameters())
        if self.value_head is not None:
            parameters |= {f"value_head.{name}": value for name, value in self.value_head.named_parameters()}
        return {name: value for name, value in sorted(parameters.items()) if value.requires_grad}

    def inside(self, function: Callable[[], T]) -> T:
        """What `function` returns, tensors in dicts, tuples or dataclasses, called where all parameters can be read.

        A sharded model has its parameters whole only inside the forward of its root; all ranks must call this together.
        """
        if self.root is None:
            return function()
        try:
            outputs = self.root(function)
        except BaseException:
            self.reshard()
            raise
        if not torch.is_grad_enabled():  # no backward will do it
            self.reshard()
        return outputs

    def reshard(self) -> None:
        """Free gathered weights and keep only this rank's shards, also after a forward without a backward."""
        if self.root is not None:
            self.root.reset_iter_state()  # type: ignore[operator]  # of FSDPModule

    def of_first(self, function: Callable[[], T]) -> T:
        """The result of a function that runs the whole model, computed on the first rank: only it has weights before
        they are sharded.
        """
        with self.ranks.agree():
            value: Any = function() if self.ranks.is_first else None
        return self.ranks.gather(value)[0]

    def tried(self, probe: str, function: Callable[[], Verdict]) -> Verdict:
        """What a probe of this model saw, tried once. A sharded model is tried by all ranks together; the first one's verdict counts."""
        if probe not in self.verdicts:
            self.verdicts[probe] = self.inside(function)
            if self.root is not None:
                self.agree_on_verdicts()
        return self.verdicts[probe]

    def agree_on_verdicts(self) -> None:
        """Merge the verdicts of all ranks, the first rank's first, so that every rank runs the model in the same way."""
        for verdicts in reversed(self.ranks.gather(dict(self.verdicts))):
            self.verdicts |= verdicts

    def before_writing(self) -> None:
        """Copy the parameters for snapshots that share them; call it before parameters are changed."""
        weights = None if self.moment is None else self.moment()
        if weights is not None:
            weights.copy()
        self.moment = None

    def train_all_weights(self) -> LoadedModel:
        """Make every parameter require a gradient, in float32 at least; returns this model.

        A bfloat16 weight has 8 bits of mantissa: an optimizer step smaller than 1/512 of it would be rounded away. A model
        that was loaded in bfloat16 still computes its products in it. Raises ModelError where the weights are 4-bit, or shared.
        """
        if self.base is not None:
            raise ModelError(
                f"the weights of {self.name} are shared with other models: load it on its own to train them"
            )
        if self.base_weights == "4bit":
            raise ModelError(
                f"the base weights of {self.name} are 4-bit, which adapters alone are trained on: choose a LoRA rank, or "
                "base_weights='full'"
            )
        loaded = next(self.module.parameters()).dtype
        if torch.promote_types(loaded, torch.float32) != loaded:
            self.compute_dtype = loaded
        for parameter in self.module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.requires_grad_(True)
        return self

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of products: the weights' own, unless `compute_dtype` is narrower."""
        return self.compute_dtype or next(self.module.parameters()).dtype

    def precision(self) -> AbstractContextManager[Any]:
        """A context for forward passes: autocast to `compute_dtype`, where there is one."""
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
        if self.kind == "encoder" and not self.masked_lm_head:
            return self.module
        below = self._transformer.base_model
        if below is not self.module:
            return below
        while hasattr(below, "lm_head") or hasattr(
            below, "language_model"
        ):  # Llama-4 names its base as nothing else does
            below = below.model if hasattr(below, "lm_head") else below.language_model
        return below

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can read."""
        return self._unpadded or self._transformer.get_input_embeddings().weight.shape[0]

    @property
    def max_length(self) -> int | None:
        """The longest sequence in tokens, None when neither the architecture nor `limit_length` sets a limit."""
        if self.length_limit is not None:
            return self.length_limit
        limit = getattr(self._transformer.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and limit < 1:  # XLNet says -1 for none
            limit = None
        if self.kind == "encoder" and limit is not None:  # RoBERTa's positions begin at 2; its tokenizer knows
            limit = min(limit, int(getattr(self.tokenizer, "model_max_length", limit)))
        return limit

    def limit_length(self, tokens: int) -> None:
        """Read no longer sequences than this. Raises ModelError where the architecture reads fewer, or for fewer than 1."""
        most = self.max_length
        if (
            isinstance(tokens, bool)
            or not isinstance(tokens, int)
            or tokens < 1
            or (most is not None and tokens > most)
        ):
            upper = "" if most is None else f" to {most}, which {self.name} reads at most"
            raise ModelError(f"max_context_length is a number of tokens, 1{upper or ' or more'}, not {tokens!r}")
        self.length_limit = tokens

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a sequence: those of the config, of the generation config and of the tokenizer."""
        module: Any = self.module
        sources = (module.config.get_text_config(), getattr(module, "generation_config", None), self.tokenizer)
        named = [getattr(source, "eos_token_id", None) for source in sources]
        return frozenset(
            token for ids in named if ids is not None for token in (ids if isinstance(ids, list) else [ids])
        )

    def head(self, *, masked_lm: bool = False) -> Head:
        """The map from hidden states to logits; with `masked_lm` also an encoder's, which reads what `before_head` gives.

        With LoRA on the head, the weight is a new tensor W + scaling·B A with a graph to A and B: ask for a head
        once for each backward. Raises ModelError for an encoder, unless a masked-LM head is meant too and it has one.
        """
        has_head = self.has_head if masked_lm else self.kind == "decoder"
        layer = self._transformer.get_output_embeddings() if has_head else None
        if layer is None:
            raise ModelError(f"{self.name} is an encoder: it gives embeddings, and has no head to give logprobs with")
        softcap, scale = cap_and_scale(self._transformer.config)
        base = getattr(layer, "base_layer", layer)
        weight, bias = effective_weight(layer), getattr(base, "bias", None)
        if self._unpadded is not None:
            weight, bias = weight[: self._unpadded], None if bias is None else bias[: self._unpadded]
        return Head(weight, bias, softcap, scale)

    @property
    def has_head(self) -> bool:
        """Whether it gives logits: a decoder, or an encoder with its masked-LM head."""
        return self.kind == "decoder" or self.masked_lm_head

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the head reads of hidden states [M, d]: those themselves, or a masked-LM head's transformation of them."""
        return before_decoder(self.module, hidden) if self.masked_lm_head else hidden

    @cached_property
    def attention_configs(self) -> list[Any]:
        """The configurations that tell the module's parts which attention function to call."""
        configs = [getattr(part, "config", None) for part in self.module.modules()]
        return list({id(config): config for config in configs if hasattr(config, "_attn_implementation")}.values())

    @property
    def _unpadded(self) -> int | None:
        return unpadded_size(self.config)

    @property
    def _transformer(self) -> Any:  # a PreTrainedModel, which type checkers see as plain nn.Module
        return self.module


def unpadded_size(config: Any) -> int | None:
    """How many of its logits an architecture gives, where its output layer has further rows that pad it (Inkling)."""
    return getattr(config.get_text_config(), "unpadded_vocab_size", None)


def cap_and_scale(config: Any) -> tuple[float | None, float]:
    """The soft cap and the scale that an architecture applies to its logits, from its config."""
    text = config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "output_logit_soft_cap", None)
    if text.model_type == "recurrent_gemma":
        softcap = text.logits_soft_cap
    scale = float(getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or getattr(text, "logits_mup_width_multiplier", None) or 1.0)
    return softcap, scale * divisor if text.model_type == "hyperclovax" else scale / divisor
