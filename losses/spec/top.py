"""Losses over the student's own likeliest tokens: the outputs that have k numbers per position, and the setting that says k."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ...datums.errors import LossContractError

#: Ids and log-probabilities of the k likeliest tokens at a position, likeliest first; a gradient reaches the log-probabilities.
TOP_TOKENS, TOP_LOGPROBS = "topk_tokens", "topk_logprobs"
TOP_OUTPUTS = (TOP_TOKENS, TOP_LOGPROBS)
#: The setting of a loss that says how many it reads.
TOP_K = "top_k"


def check_top(name: str, function: Callable[..., Any], outputs: Sequence[str]) -> None:
    """Raise LossContractError for a loss over the likeliest tokens that does not say how many, or reads only their ids."""
    if not (named := [one for one in outputs if one in TOP_OUTPUTS]):
        return
    setting = inspect.signature(function).parameters.get(TOP_K)
    if setting is None or setting.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise LossContractError(
            f"{name} reads {' and '.join(named)}, so it needs a keyword-only setting that says how many, such as `*, {TOP_K}: AtLeastOne = 20`"
        )
    if list(outputs) == [TOP_TOKENS]:
        raise LossContractError(f"{name} reads {TOP_TOKENS} alone, which have no gradient: read {TOP_LOGPROBS} too")
