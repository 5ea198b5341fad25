"""What a service is told about running its models: a slip of the pen is an error at once, never another choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.head.logprobs import Head, linear_logprobs


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batching": "pack"}, r"^batching is one of 'packed', 'padded', 'single', not 'pack'"),
        ({"head_strategy": "fast"}, r"^head_strategy is one of 'auto', 'keep', .*, not 'fast'"),
        ({"head_backend": "ligre"}, r"^head_backend is one of 'auto', .*, 'liger', not 'ligre'. Did you mean 'liger'"),
        (
            {"fused_layers": "ligre"},
            r"^fused_layers is one of 'auto', 'liger', 'none', not 'ligre'. Did you mean 'liger'",
        ),
        ({"tokens_per_micro_batch": 0}, r"^tokens_per_micro_batch is a whole number of tokens, at least 1, .* not 0$"),
        ({"kept_graph_tokens": -1}, r"^kept_graph_tokens is a whole number of tokens, at least 0, .* not -1$"),
        ({"head_memory": "1GB"}, r"^head_memory is a whole number of bytes, at least 0, .* not '1GB'$"),
        ({"head_memory": True}, r"^head_memory is a whole number of bytes, .* not True$"),
    ],
)
def test_an_option_that_cannot_be_is_refused_when_the_service_is_made(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        lb.ServiceClient(device="cpu", **option)


def test_a_backend_that_there_is_not_is_refused_by_the_head_too() -> None:
    unknown: Any = "fastest"
    with pytest.raises(ModelError, match="must be one of auto, chunked, cut-cross-entropy, liger, not 'fastest'"):
        linear_logprobs(torch.zeros(2, 3), Head(torch.zeros(5, 3)), torch.tensor([0, 1]), head_backend=unknown)
