"""
A stale sampler turns the gradient; only a weight per whole answer can turn it all the way back
===============================================================================================

In asynchronous RL an engine samples with weights that are some updates old. A loss that takes its samples for the
policy's own follows a wrong gradient. Answers here have 3 tokens of 4 kinds, so the expected gradient over all 64
answers is an exact sum, and can be compared with the true policy gradient.
"""

import itertools

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss, rollout_correction

generator = torch.Generator().manual_seed(1)
answers = torch.tensor(list(itertools.product(range(4), repeat=3)))
rewards = torch.randn(64, generator=generator, dtype=torch.float64)
policy, drift = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
mask = torch.ones(1, 3)


def logprobs_of(logits: torch.Tensor) -> torch.Tensor:
    """[64, 3] nats: each answer's tokens, of which token t has the logits [t]."""
    return logits.log_softmax(-1)[torch.arange(3), answers]


corrections = {
    "none": get_loss("importance_sampling"),
    "token, truncated at 2": rollout_correction("importance_sampling", level="token", rule="truncate", cap=2.0),
    "sequence, truncated at 2": rollout_correction("importance_sampling", level="sequence", rule="truncate", cap=2.0),
    "sequence, no cap": rollout_correction("importance_sampling", level="sequence", rule="truncate", cap=1e6),
}


def moments(loss, staleness: float) -> tuple[torch.Tensor, float]:
    """The expected gradient [12] over the sampler's answers, and the deviation of a single answer's."""
    old = logprobs_of(policy - staleness * drift)
    probability = old.sum(1).exp()
    gradients = []
    for i in range(64):
        logits = policy.clone().requires_grad_()
        now = logprobs_of(logits)[i : i + 1]
        given = {"sampling_logprobs": now.detach(), "advantages": rewards[i : i + 1]}
        given |= {"rollout_logprobs": old[i : i + 1]} if "+" in loss.name else {}
        loss.on_tensors(now, mask=mask, **given)[0].backward()
        gradients.append(logits.grad.flatten())
    each = torch.stack(gradients)
    mean = probability @ each
    return mean, float((probability @ (each - mean).square()).sum().sqrt())


true, _ = moments(corrections["none"], 0.0)
stalenesses = [0.0, 0.25, 0.5, 0.75, 1.0]
errors = {
    k: [float((moments(v, s)[0] - true).norm() / true.norm()) for s in stalenesses] for k, v in corrections.items()
}
for label, error in errors.items():
    plt.plot(stalenesses, error, marker="o", label=label)
plt.gca().set(xlabel="how far the sampler lags behind", ylabel="error of the expected gradient / its norm")
plt.legend(title="correction")
plt.show()

# %%
# Without a weight the error grows at once. The product of the whole answer's ratios is exact, and its price is
# variance; the caps trade some of the bias back. A weight per token leaves out what the other tokens say about how
# likely the answer was, so a part of the error stays, without a cap as well.

for label, loss in corrections.items():
    print(f"{label:25} error {errors[label][-1]:.2f}   deviation of one answer's gradient {moments(loss, 1.0)[1]:.2f}")

assert errors["sequence, no cap"][-1] < 1e-9
assert errors["none"][-1] > 2 * errors["token, truncated at 2"][-1] > 0
