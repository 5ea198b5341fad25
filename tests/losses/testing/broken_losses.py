"""Losses with one bug each, of kinds seen in real code. None is registered; test_kit.py says which check reports it.

Losses whose bug a single check reports are in hidden_bugs.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from lossbook.losses import PerDatum, Seqs, Stat, safe_ratio, stats

Returned = tuple[Tensor, dict[str, Stat]]


def local_baseline(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Subtracts the mean advantage of its micro-batch."""
    return -logprobs * (advantages - advantages.mean())


def local_whitening(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Divides by the largest advantage of the micro-batch."""
    return -logprobs * advantages / advantages.abs().amax().clamp(min=0.5)


def share_of_advantage(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Divides by the sum of advantages, which may cancel to zero and is zero without data."""
    return -logprobs * (advantages / advantages.sum())


def refuses_nothing(logprobs: Tensor) -> Tensor:
    """Takes a maximum, which fails on an empty rank."""
    return -logprobs + 0 * logprobs.max().detach()


def reads_neighbour(logprobs: Tensor) -> Tensor:
    """Smooths over the packed row, and so across datums."""
    return -(logprobs + torch.roll(logprobs, 1)) / 2


def centred_per_datum(logprobs: Tensor, advantages: Tensor, seqs: Seqs) -> Tensor:
    """Couples the tokens of a datum without declaring it."""
    return -logprobs * (advantages - seqs.broadcast(seqs.mean(advantages)))


def weighs_by_place(logprobs: Tensor, seqs: Seqs) -> Tensor:
    """Later datums count for more."""
    return -seqs.sum(logprobs) * torch.arange(1, seqs.count + 1).to(logprobs)


def log_of_sigmoid(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: float = 0.1) -> Tensor:
    """log(sigmoid(x)) is -inf where logsigmoid(x) is x."""
    chosen, rejected = seqs.pairs(seqs.sum(logprobs - ref_logprobs))
    return -torch.sigmoid(beta * (chosen - rejected)).log()


def uncapped_ratio(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """exp(89) is infinite in float32."""
    return -(logprobs - sampling_logprobs).exp() * advantages


def detached(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Learns nothing."""
    return -logprobs.detach() * advantages


def ratio_of_itself(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Has a graph, and a gradient of zero: the ratio is 1 whatever the policy."""
    return -(logprobs - logprobs).exp() * advantages


def dead_setting(
    logprobs: Tensor, advantages: Tensor, *, entropy_coefficient: float = 0.01, scale: float = 1.0
) -> Tensor:
    """Takes an entropy coefficient and forgets it."""
    return -logprobs * advantages * scale


def dead_input(logprobs: Tensor, ref_logprobs: Tensor | None = None) -> Tensor:
    """Takes a reference and forgets it."""
    return -logprobs


def mean_of_means(logprobs: Tensor, sampling_logprobs: Tensor) -> Returned:
    """Its metric is a mean of one number: the micro-batch's own mean."""
    ratio = safe_ratio(logprobs, sampling_logprobs)
    return -ratio, {"ratio_mean": stats.mean(ratio.mean())}


def names_by_data(logprobs: Tensor, advantages: Tensor) -> Returned:
    """Reports a metric only when there is something to report."""
    rewarded = advantages > 0
    return -logprobs * advantages, ({"rewarded": stats.sum(rewarded)} if bool(rewarded.any()) else {})


def float_metric(logprobs: Tensor) -> Any:
    """Its metric is a float, which cannot be merged."""
    return -logprobs, {"nll_mean": float(-logprobs.detach().mean())}


def changes_in_place(logprobs: Tensor) -> Tensor:
    """Clamps the tensor that other losses of a mixture read."""
    return -logprobs.clamp_(min=-2.0)


def changes_input_in_place(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Scales its input in place."""
    return -logprobs * advantages.mul_(0.5)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return gradients[0] * values  # the 2 is missing


def wrong_backward(logprobs: Tensor) -> Tensor:
    """A hand-written backward that is off by a factor."""
    return _Halved.apply(logprobs)  # type: ignore[return-value]


def reduced(logprobs: Tensor) -> Tensor:
    """Takes the mean itself."""
    return -logprobs.mean()


def noisy(logprobs: Tensor) -> Tensor:
    """Drops tokens at random."""
    return -logprobs * (torch.rand_like(logprobs) > 0.5)


_calls = [0]


def remembers(logprobs: Tensor) -> Tensor:
    """Warms up over calls."""
    _calls[0] += 1
    return -logprobs * min(1.0, _calls[0] / 1e6)


def masks_by_multiplying(logprobs: Tensor, sampling_logprobs: Tensor, weights: Tensor) -> Tensor:
    """0 x inf is NaN."""
    return -(logprobs - sampling_logprobs).exp() * weights


def half_precision(logprobs: Tensor) -> Tensor:
    """Computes in bfloat16 to save memory."""
    return -logprobs.bfloat16().to(logprobs.dtype)


def normalizes_in_half(embeddings: Tensor) -> Tensor:
    """Normalizes in 16 bits."""
    return normalize(embeddings.half(), dim=-1).sum(-1)


def cancels(logprobs: Tensor) -> Tensor:
    """Adds a large number and takes it away again, with which float32 loses digits that float64 has to spare."""
    return 1e6 - (1e6 + logprobs)


def prefers_later_partners(embeddings: Tensor) -> Tensor:
    """Contrastive, but the scores grow with the position in the batch."""
    queries, documents = embeddings.tensor_split(2)
    scores = queries @ documents.T * torch.arange(1, len(queries) + 1).to(embeddings)
    losses = scores.logsumexp(1) - scores.diagonal()
    return torch.cat([losses, losses])


def unlabelled(logprobs: Tensor, label: PerDatum, seqs: Seqs) -> Tensor:
    """Reads a label per datum and divides 0 by 0 where none is 1."""
    sums = seqs.sum(logprobs)
    return -logsigmoid(sums) * label / label.sum()


def linear_below_a_cap(logprobs: Tensor) -> Tensor:
    """Declared linear, which it is only while no token is likelier than its cap."""
    return -logprobs.clamp(max=-1.0)


def batch_style_in_place(data: Any, logprobs_list: list[Tensor]) -> Any:
    """Changes its datum in place."""
    for datum in data:
        datum.loss_fn_inputs["advantages"].to_numpy()[:] += 1.0
    return -torch.cat(logprobs_list).sum(), {}


def batch_style_detached(data: Any, logprobs_list: list[Tensor]) -> Any:
    """Builds the loss out of floats."""
    return torch.tensor([float(x.detach().sum()) for x in logprobs_list], requires_grad=True).sum(), {}
