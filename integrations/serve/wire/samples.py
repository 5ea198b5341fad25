"""The request for samples: `asample`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...tinker.types import EncodedTextChunk, ModelInput, SamplingParams, TensorData
from ..refusals import Failed, Refused
from ..settings import Limits
from .fields import Choices, Fields, Id, Number, Request, Text, most
from .tensors import check_csr, size_of

#: The most characters of a stop string.
STOP_CHARACTERS = 1024
_Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Chunk(Fields):
    """A chunk of a prompt: text, or what models here do not read."""

    type: str = "encoded_text"
    tokens: list[_Int64] | None = None


class Prompt(Fields):
    """A prompt of a model."""

    chunks: list[Chunk]


class Sampling(Choices):
    """How to sample, with Tinker's defaults. `stop=None` stops at the end-of-sequence token, `stop=[]` only at `max_tokens`."""

    max_tokens: _Int64 | None = None
    seed: _Int64 | None = None
    stop: str | list[_Int64] | list[str] | None = None
    temperature: float = 1.0
    top_k: _Int64 = -1
    top_p: float = 1.0


class _Targets(Fields):
    data: list[_Int64]
    dtype: Literal["int64"] = "int64"
    shape: list[_Int64] | None = None
    sparse_crow_indices: list[_Int64] | None = None
    sparse_col_indices: list[_Int64] | None = None


class Sample(Request):
    """`asample`. Its methods give what `SamplingClient.sample` of the Tinker door takes; they raise Failed, for its future."""

    NUMBERED: ClassVar = (("sampling_session_id", "seq_id", "sample"),)
    sampling_session_id: Id
    seq_id: Number
    num_samples: Annotated[int, Field(ge=1)] = 1
    prompt: Prompt
    sampling_params: Sampling
    base_model: Text | None = None
    model_path: Text | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Annotated[int, Field(ge=0)] = 0
    topk_sample_logprobs: Annotated[int, Field(ge=0)] = 0
    target_prompt_logprobs: _Targets | None = None
    prompt_alt_tokens_k: Annotated[int, Field(ge=0)] = 0
    prompt_logprobs_last_n: _Int64 | None = None
    record_stability_info: bool | None = None

    @classmethod
    def check_size(cls, fields: Mapping[str, Any], limits: Limits) -> None:
        prompt = fields.get("prompt")
        chunks = prompt.get("chunks") if isinstance(prompt, Mapping) else None
        most("chunks", "the number of prompt.chunks", len(chunks) if isinstance(chunks, list) else 0, limits)

    def check(self, limits: Limits) -> None:
        params, tokens = self.sampling_params, sum(len(chunk.tokens or ()) for chunk in self.prompt.chunks)
        most("samples", "num_samples", self.num_samples, limits)
        most("tokens", "the number of tokens of the prompt", tokens, limits)
        if params.max_tokens is not None:
            most("sampled_tokens", "num_samples times max_tokens", self.num_samples * params.max_tokens, limits)
        for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
            most("top_k", name, getattr(self, name), limits)
        stops = params.stop if isinstance(params.stop, list) else []
        most("stop_strings", "the number of sampling_params.stop", len(stops), limits)
        for stop in [params.stop, *stops]:
            if isinstance(stop, str) and len(stop) > STOP_CHARACTERS:
                raise Refused(
                    400, f"sampling_params.stop: a string of {len(stop)} characters; at most {STOP_CHARACTERS}"
                )
        if self.target_prompt_logprobs is not None:
            columns = (self.target_prompt_logprobs.shape or [0])[-1]
            most("columns", "target_prompt_logprobs.shape[-1]", columns, limits)

    def model_input(self) -> ModelInput:
        """The prompt. Raises Failed for chunks that hold no text."""
        tokens: list[int] = []
        for i, chunk in enumerate(self.prompt.chunks):
            if chunk.type != "encoded_text" or chunk.tokens is None:
                raise Failed(not_text(f"prompt.chunks[{i}]", chunk.type), "user")
            tokens += chunk.tokens
        return ModelInput(chunks=[EncodedTextChunk(tokens=tokens)])

    def params(self) -> SamplingParams:
        """How to sample. Raises Failed for a field that nobody here knows."""
        self.sampling_params.check_extra("sampling_params")
        return SamplingParams(**{name: getattr(self.sampling_params, name) for name in Sampling.model_fields})

    def targets(self, limits: Limits) -> TensorData | None:
        """The ids whose prompt logprobs are wanted: [N - 1, K], -1 where none is. Raises Failed, or Refused above a limit."""
        given, where = self.target_prompt_logprobs, "target_prompt_logprobs"
        if given is None:
            return None
        shape = [len(given.data)] if given.shape is None else given.shape
        size_of(shape, where, limits)
        if given.sparse_crow_indices is not None and given.sparse_col_indices is not None:
            crow, col = (np.array(part, np.int64) for part in (given.sparse_crow_indices, given.sparse_col_indices))
            check_csr(len(given.data), shape, crow, col, where)
        try:
            return TensorData(**given.model_dump(exclude={"shape"}), shape=shape)
        except (ValueError, TypeError) as error:
            raise Failed(f"{where}: {error}", "user") from None

    def keywords(self, limits: Limits) -> dict[str, Any]:
        """Keyword arguments of `SamplingClient.sample` beside the prompt."""
        return {
            "num_samples": self.num_samples,
            "sampling_params": self.params(),
            "include_prompt_logprobs": bool(self.prompt_logprobs),
            "topk_prompt_logprobs": self.topk_prompt_logprobs,
            "topk_sample_logprobs": self.topk_sample_logprobs,
            "target_prompt_logprobs": self.targets(limits),
            "prompt_alt_tokens_k": self.prompt_alt_tokens_k,
            "prompt_logprobs_last_n": self.prompt_logprobs_last_n,
        }


def not_text(where: str, kind: str) -> str:
    """What is said of a chunk that no model here reads."""
    return (
        f"{where} is {ascii(kind)[:60]}, but models here read text only: give encoded_text, and send no images or links"
    )
