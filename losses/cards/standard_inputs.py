"""The standard inputs and model outputs of losses: shape, unit and meaning of each name.

A card takes these where the docstring of a loss says nothing else about a name. T counts the tokens of all datums.
"""

from __future__ import annotations

from .docstrings import TensorLine

STANDARD_INPUTS = {
    "logprobs": TensorLine("[T]", "nats", "under the policy in training"),
    "sampling_logprobs": TensorLine("[T]", "nats", "under the policy that sampled the token"),
    "ref_logprobs": TensorLine("[T]", "nats", "under the frozen reference"),
    "teacher_logprobs": TensorLine("[T]", "nats", "of the same tokens under the teacher"),
    "advantages": TensorLine("[T]", "unitless", "how much better than expected the token turned out"),
    "weights": TensorLine("[T]", "unitless", "multiplies the loss of each position; 0 hides the position"),
    "entropy": TensorLine("[T]", "nats", "of the policy's distribution over the whole vocabulary"),
    "logsumexp": TensorLine("[T]", "nats", "log Σ_v exp(logit_v): the logarithm of the softmax's denominator"),
    "mean_logprobs": TensorLine("[T]", "nats", "the mean over all V tokens of the vocabulary"),
    "topk_logprobs": TensorLine("[T, k]", "nats", "of the policy's k likeliest tokens, likeliest first"),
    "topk_tokens": TensorLine("[T, k]", "ids", "the policy's k likeliest tokens, likeliest first"),
    "vocab_logprobs": TensorLine("[T, V]", "nats", "of all V tokens of the vocabulary under the policy in training"),
    "layer_embeddings": TensorLine("[N, L, D]", "unitless", "of L layers of the model, pooled as embeddings are"),
    "token_embeddings": TensorLine("[T, D]", "unitless", "the model's last hidden states"),
    "teacher_vocab_logprobs": TensorLine("[T, V]", "nats", "of all V tokens of the vocabulary under the teacher"),
    "values": TensorLine("[T]", "in units of the reward", "from a scalar head of the model in training"),
    "group": TensorLine("[N]", "unitless", "an integer: the same for datums that belong together"),
    "old_values": TensorLine("[T]", "in units of the reward", "from the head as it was when the tokens were sampled"),
}
