"""
A metric that says how it merges is right over any number of micro-batches
==========================================================================

The mean of a metric over a step is not the mean of the micro-batches' means, and a maximum has no mean at all. A loss
returns its metrics as `stats.mean`, `sum`, `min` or `max` of tensors; calls and ranks then merge them exactly. This
loss counts confident mistakes: tokens of probability below 1 %, and the worst of them.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.losses import stats
from lossbook.losses.stats import Stat


def watched_cross_entropy(logprobs: Tensor) -> tuple[Tensor, dict[str, Stat]]:
    """-logprobs, with an eye on the tokens that the model rules out.

    logprobs   [T]  nats, of the target tokens
    returns    [T]  nats
    """
    ruled_out = logprobs < -4.6
    return -logprobs, {
        "ruled_out": stats.mean(ruled_out),
        "ruled_out_tokens": stats.sum(ruled_out),
        "worst": stats.min(logprobs),
        "worst_ruled_in": stats.mean(logprobs, ~ruled_out),
    }


torch.manual_seed(0)
lengths = torch.tensor([40, 3, 5, 30, 2, 8, 4, 6])
mask = torch.arange(40) < lengths[:, None]
logprobs = -torch.distributions.Exponential(0.4).sample((8, 40)) * (1 + 2 * (lengths[:, None] > 20))

loss = get_loss(watched_cross_entropy, reduction="token-mean")
count = loss.count_tensors(mask=mask)
_, whole = loss.on_tensors(logprobs, mask=mask)
merged, means = {}, {}
for size in (1, 2, 4, 8):
    parts = [
        loss.on_tensors(rows, mask=here, denominator=count)[1]
        for rows, here in zip(logprobs.split(size), mask.split(size), strict=True)
    ]
    merged[size] = sum(parts)
    means[size] = sum(part["ruled_out"] for part in parts) / len(parts)

plt.plot(list(means), [100 * value for value in means.values()], marker="o", label="mean of the micro-batches' means")
plt.plot(list(merged), [100 * value["ruled_out"] for value in merged.values()], marker="o", label="merged")
plt.gca().set(xlabel="rows per micro-batch", ylabel="tokens ruled out (%)", ylim=(0, None))
plt.legend()
plt.show()

for size, metrics in merged.items():
    print(
        f"{size} rows per micro-batch: merged {metrics['ruled_out']:.4f}, mean of means {means[size]:.4f}, worst {metrics['worst']:.2f}"
    )
assert all(abs(metrics[key] - whole[key]) < 1e-6 for metrics in merged.values() for key in whole)
assert abs(means[1] - whole["ruled_out"]) > 0.05
