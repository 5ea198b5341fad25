"""The functions that users hand to `forward_backward_custom`, as losses: what they read, and from which forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...datums.errors import LengthMismatchError, LossContractError, MissingInput, did_you_mean
from ...datums.types import Datum
from ...losses.loss.loss import Loss, LossLike
from ...losses.registry import get_loss, is_registered, spec_of_function
from ..responses import ForwardBackwardOutput

#: What a function may be handed, by the names that callers give it.
Output = Literal["logprobs", "embedding", "embeddings", "projection", "cos_similarity_matrix"]
#: The model's output that it is made of.
OUTPUTS = {
    "logprobs": "logprobs",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "projection": "projection",
    "cos_similarity_matrix": "embeddings",
}
#: A loss in the hosted APIs' form.
Function = Callable[..., Any]


def custom_loss(
    function: Function, output: str, datums: Sequence[Datum], precomputed: ForwardBackwardOutput | None = None
) -> LossLike:
    """The loss that a function is; a registered one says itself what it reads.

    Raises LossContractError for an unknown `output` and for a forward that the function cannot go on from; see `given_logprobs`.
    """
    if output not in OUTPUTS:
        raise LossContractError(
            f"output={output!r} is none of {', '.join(map(repr, OUTPUTS))}.{did_you_mean(str(output), OUTPUTS)}"
        )
    if isinstance(function, str):
        raise LossContractError(
            f"loss_fn is a function here, not the id {function!r}: ids go to forward_backward(data, {function!r})"
        )
    is_loss = isinstance(function, LossLike) or is_registered(function)
    if precomputed is not None and (is_loss or output != "logprobs"):
        raise LossContractError(
            "precomputed_forward is for a function fn(data, logprobs_list) with output='logprobs'; leave it out: it saves no "
            "forward here, where every call costs one forward and one backward"
        )
    if is_loss:
        return get_loss(function).copied()
    if precomputed is not None:
        function = _from_given(function, given_logprobs(datums, precomputed))
    if output == "cos_similarity_matrix":
        function = _of_similarities(function)
    return Loss(spec_of_function(function, output=OUTPUTS[output]), {})


def given_logprobs(datums: Sequence[Datum], forward: ForwardBackwardOutput) -> list[Tensor]:
    """Each datum's logprobs as `forward` returned them, in the shape of its targets.

    Raises LengthMismatchError where they are not of these datums, MissingInput where an output has none.
    """
    outputs = forward.loss_fn_outputs
    if len(outputs) != len(datums):
        raise LengthMismatchError(
            f"precomputed_forward has outputs of {len(outputs)} datums, but there are {len(datums)}"
        )
    given = []
    for i, (datum, output) in enumerate(zip(datums, outputs, strict=True)):
        if "logprobs" not in output:
            raise MissingInput(f"precomputed_forward has no logprobs of datum {i} of {len(datums)}: run forward(data)")
        targets, logprobs = datum.loss_fn_inputs.get("target_tokens"), output["logprobs"].to_torch()
        if targets is None or list(logprobs.shape) != list(targets.shape):
            shape = "none" if targets is None else f"shape {list(targets.shape)}"
            raise LengthMismatchError(
                f"precomputed_forward has logprobs of shape {list(logprobs.shape)} for datum {i} of {len(datums)}, whose "
                f"target_tokens have {shape}. Is it of other data, or in another order?"
            )
        given.append(logprobs)
    return given


def _from_given(function: Function, given: Sequence[Tensor]) -> Function:
    """The function of logprobs that were computed before; its gradient goes through those of this call."""

    @functools.wraps(function)
    def at_given(data: Any, logprobs_list: Sequence[Tensor]) -> Any:
        own = [old + (new - new.detach()) for old, new in zip(given, logprobs_list, strict=True)]
        return function(data, own)

    return at_given


def _of_similarities(function: Function) -> Function:
    """A function of rows of the matrix of cosine similarities as one of embeddings."""

    @functools.wraps(function)
    def of_embeddings(data: Any, embeddings: Sequence[Tensor]) -> Any:
        vectors = normalize(torch.stack(list(embeddings)), dim=-1)
        return function(data, list((vectors @ vectors.T).unbind(0)))

    return of_embeddings


def projections_only(data: Any, projections: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
    """A loss of 0, for a forward of which nothing but the projections is wanted."""
    return torch.zeros((), dtype=torch.float32, device="cpu"), {}


def check_contrastive(datums: int, queries: int, extra: int) -> None:
    """Raise LossContractError unless there are as many datums as queries, their documents and extra negatives."""
    if datums != 2 * queries + extra:
        raise LossContractError(
            f"{queries} queries, as many documents and {extra} extra negatives make {2 * queries + extra} datums, but there are "
            f"{datums}"
        )
