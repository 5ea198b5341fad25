"""
The mean of four ranks' means is not the mean of their tokens
=============================================================

Data parallelism averages the gradients of its ranks, and each rank averages over its tokens. Where ranks have unequal
numbers of tokens, a token's weight depends on the rank that it was dealt to. `count_tensors` gives each rank's share
of the denominator; added up over all, it makes one loss of the ranks. The ranks are simulated here: four models whose
gradients are averaged, as by DistributedDataParallel or Accelerate.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

RANKS = 4
torch.manual_seed(0)
model = torch.nn.Linear(8, 16)
loss = get_loss("dft")


def gradient(inputs: torch.Tensor, labels: torch.Tensor, denominator: torch.Tensor | None = None) -> torch.Tensor:
    value, _ = loss.on_logits(model(inputs), labels, denominator=denominator)
    (weight,) = torch.autograd.grad(value, model.weight)
    return weight


def errors(longest: int) -> tuple[float, float]:
    """Error of the averaged gradient, of the ranks' own means and of the law, where rows have 2 to `longest` tokens."""
    generator = torch.Generator().manual_seed(longest)
    inputs = torch.randn(16, 64, 8, generator=generator)
    lengths = torch.linspace(2, longest, 16).long()
    labels = torch.randint(0, 16, (16, 64), generator=generator)
    labels = labels.masked_fill(torch.arange(64) >= lengths[:, None], -100)
    ranks = list(zip(inputs.chunk(RANKS), labels.chunk(RANKS), strict=True))
    whole = gradient(inputs, labels)
    count = sum(loss.count_tensors(labels=own) for _, own in ranks)  # an all-reduce
    means = sum(gradient(*rank) for rank in ranks) / RANKS
    law = (
        sum(RANKS * gradient(*rank, denominator=count) for rank in ranks) / RANKS
    )  # times RANKS: the average divides by it
    return tuple(float((one - whole).norm() / whole.norm()) for one in (means, law))


longest = (2, 4, 8, 16, 32, 64)
own_means, law = zip(*(errors(n) for n in longest), strict=True)
plt.plot(longest, [100 * value for value in own_means], marker="o", label="each rank divides by its own tokens")
plt.plot(longest, [100 * value for value in law], marker="o", label="all divide by the tokens of all")
plt.gca().set(xlabel="longest row (tokens); the shortest has 2", ylabel="error of the gradient (%)", xscale="log")
plt.xticks(longest, [str(n) for n in longest])
plt.legend()
plt.show()

# %%
# With rows of one length there is no difference, which is why tests with equal rows do not see it.

for n, mean_error, law_error in zip(longest, own_means, law, strict=True):
    print(f"rows of 2 to {n:2} tokens: own means {mean_error:7.2%}, law {law_error:.1e}")
assert max(law) < 1e-6
assert own_means[0] < 1e-6 < 0.1 < own_means[-1]
