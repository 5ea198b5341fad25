"""Results of calls, with the Tinker SDK's field names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..datums.display import box, counted, few, named, one_line, rows_html
from ..datums.types import TensorData
from ..losses.stats import Stat, merge, values


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """loss_fn_outputs: one dict per datum, in order; `["logprobs"]` has the shape of its target_tokens (nats).

    metrics: plain floats; `loss:sum` is the loss whose gradient was added, `denominator` what it was divided by.
    stats: the same metrics with their kinds and counts, so that several calls' can be merged (`merge_outputs`).
    weights: names the weights that a forward was made by; None where it is not known.
    """

    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float] = field(default_factory=dict)
    loss_fn_output_type: str = "ArrayRecord"
    stats: Mapping[str, Stat] = field(default_factory=dict, repr=False, compare=False)
    weights: str | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        keys = ", ".join(dict.fromkeys(key for output in self.loss_fn_outputs for key in output)) or "nothing"
        datums = counted(len(self.loss_fn_outputs), "datum")
        return one_line(f"ForwardBackwardOutput({keys} of {datums}; {named(self.metrics)})")

    def _repr_html_(self) -> str:
        rows = [
            (f"datum {i}", key, repr(one)) for i, out in enumerate(self.loss_fn_outputs) for key, one in out.items()
        ]
        metrics = rows_html(((name, f"{value:.6g}") for name, value in self.metrics.items()), "metrics")
        return box(f"Output of {counted(len(self.loss_fn_outputs), 'datum')}", metrics, rows_html(rows, "outputs"))


def merge_outputs(outputs: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """Several calls as one: all their outputs in order, and each metric over the data of all calls.

    Sums are added, means weighted by their counts, minima and maxima combined. `loss:sum` is
    weighted by the calls' denominators; of a mixture whose parts have different ones it is the mean over calls.
    """
    if len(outputs) == 1:
        return outputs[0]
    merged = merge(output.stats for output in outputs)
    return ForwardBackwardOutput(
        [one for output in outputs for one in output.loss_fn_outputs], values(merged), stats=merged
    )


@dataclass(frozen=True)
class OptimStepResponse:
    """What a step did.

    metrics        `grad_norm` before clipping, `normalizer` and others: numbers to log beside those of the losses
    step           how many steps the optimizer has taken, this one included; 0 where nobody counts
    learning_rate  of this step
    """

    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    learning_rate: float = 0.0

    def __repr__(self) -> str:
        return one_line(
            f"OptimStepResponse(step={self.step}, learning_rate={self.learning_rate:.6g}; {named(self.metrics)})"
        )


@dataclass(frozen=True)
class SaveStateResponse:
    """path: give it to `load_state`, `create_sampling_client` or `create_training_client_from_state`."""

    path: str


@dataclass(frozen=True, eq=False)
class TopLogprobs:
    """The k likeliest next tokens at each of a datum's N positions, as `datum_from_teacher_topk` takes them.

    tokens     [N, k] int64 ids, likeliest first
    logprobs   [N, k] float32 nats, over the full vocabulary; -inf at positions that were not computed, such as those of weight 0
    """

    tokens: np.ndarray
    logprobs: np.ndarray

    def __repr__(self) -> str:
        return f"TopLogprobs({' x '.join(map(str, self.tokens.shape))} tokens and logprobs)"

    def lists(self) -> list[list[tuple[int, float]] | None]:
        """[N] lists of k pairs (id, logprob), as Tinker's SDK gives them; None at positions that were not computed."""
        rows = zip(self.tokens.tolist(), self.logprobs.tolist(), strict=True)
        computed: list[bool] = np.any(self.logprobs > -np.inf, axis=1).tolist()
        return [
            list(zip(*row, strict=True)) if is_computed else None
            for row, is_computed in zip(rows, computed, strict=True)
        ]


@dataclass(frozen=True)
class SampledSequence:
    """One continuation.

    tokens         as generated, the stop token included
    logprobs       nats, of the model itself (temperature 1, no truncation); with `scaled_logprobs` at the sampling temperature
    topk_logprobs  the likeliest tokens at each position of `tokens`, under the same distribution, where they were asked for
    sequence_id    no other sequence of a client has it; samples that are equal in all else are equal
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]
    topk_logprobs: TopLogprobs | None = None
    sequence_id: str = field(default="", compare=False)

    def __repr__(self) -> str:
        tokens = f"{counted(len(self.tokens), 'token')} {few(self.tokens)}"
        return one_line(f"SampledSequence({tokens}, logprobs {few(self.logprobs, 3)}, {self.stop_reason!r})")


@dataclass(frozen=True)
class SampleResponse:
    """The samples of one prompt of N tokens, and what was asked about the prompt.

    sequences               `num_samples` of them
    prompt_logprobs         [N] nats, of each token given those before it; None for the first, and before the last n asked for
    topk_prompt_logprobs    [N, k], the likeliest tokens in place of each; not computed where prompt_logprobs is None
    target_prompt_logprobs  [N - 1] or [N - 1, K] nats of the ids that were asked about, 0.0 where -1 was; sparse where that was
    """

    sequences: list[SampledSequence]
    prompt_logprobs: list[float | None] | None = None
    topk_prompt_logprobs: TopLogprobs | None = None
    target_prompt_logprobs: TensorData | None = None

    def __repr__(self) -> str:
        asked = ("prompt_logprobs", "topk_prompt_logprobs", "target_prompt_logprobs")
        lengths = few([len(one.tokens) for one in self.sequences])
        also = "".join(f", with {name}" for name in asked if getattr(self, name) is not None)
        return one_line(f"SampleResponse({counted(len(self.sequences), 'sequence')} of {lengths} tokens{also})")


@dataclass(frozen=True)
class ModelData:
    """A model's name and architecture."""

    model_name: str
    arch: str
    tokenizer_id: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """The model that a training client trains, and how.

    batching     "packed", "padded" or "single"
    attention    how it runs over a packed row: "varlen" or "flex" (one call per layer), or "blocks" (one per block and
                 layer); where nothing is packed, the name of transformers' attention function
    cuts_tails   whether tokens after the last one that is read are left out
    shares       whether a prefix that several datums begin with is computed once
    cache        how samples are decoded: "shared prompts" (each kept once), "cache" (the model's own), either "... of one length"
                 where only prompts of one length are decoded together, or "none"; on a GPU also "fixed buffers", and "fixed
                 buffers, replayed as a graph" where a step is recorded once as a CUDA graph; None before the first sample
    reasons      why the model does not run in another way, by probe: "cut", "padded", "sharing", "blocks", "restarting",
                 "narrow weights", "routing" (routing matrices), the kinds of cache, and "graph": why no step of decoding can be recorded
    fused        how many parts run in fused kernels, by kind ("norms", "MLPs", "rotations"); `reasons` says why others do not
    head         strategy and backend of the last call of `linear_logprobs`, None before the first
    kind         "decoder" or "encoder"
    masked_lm_head  whether an encoder has its masked-LM head, which pooling "splade" reads
    dtype        of products, such as "bfloat16"
    narrow_weights  linear weights that are cast to that dtype once per call, and not in every forward
    max_length   in tokens, None where the architecture sets no limit
    vocab_size   rows of the output head, which may be more than the tokenizer has tokens
    end_tokens   ids of the tokens at which sampling stops by default
    base_weights   "full", or "4bit" where the linear layers of its layers are quantized (nf4)
    lora_targets   weights with an adapter, layer numbers as *
    lora_left_out  weights of the chosen parts, and routers, that have none, layer numbers as *, with the reason
    parameters   numbers in all weights, adapters and a value head included; a 4-bit one counts as one
    """

    model_id: str
    model_name: str
    is_lora: bool
    lora_rank: int | None
    model_data: ModelData
    trainable_parameters: int
    device: str
    batching: str = "padded"
    attention: str = "sdpa"
    cuts_tails: bool = True
    shares: bool = False
    cache: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    fused: dict[str, int] = field(default_factory=dict)
    head: str | None = None
    kind: Literal["decoder", "encoder"] = "decoder"
    masked_lm_head: bool = False
    dtype: str = "float32"
    narrow_weights: int = 0
    max_length: int | None = None
    value_head: bool = False
    vocab_size: int | None = None
    end_tokens: tuple[int, ...] = ()
    base_weights: str = "full"
    lora_targets: tuple[str, ...] = ()
    lora_left_out: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        what = f"LoRA of rank {self.lora_rank}" if self.is_lora else "all weights"
        trained = f"{what}, {self.trainable_parameters:,} parameters in training"
        return one_line(f"ModelInfo({self.model_id}: {self.model_name}, {trained}, {self.dtype} on {self.device})")

    parameters: int | None = None
