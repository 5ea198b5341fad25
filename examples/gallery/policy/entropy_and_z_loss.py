"""
Two terms that teach nothing alone: entropy keeps a policy open, z-loss keeps its logits in place
=================================================================================================

Both are added to another loss. `entropy_bonus` pays for entropy, so that a policy does not settle on the first thing
that was rewarded; `z_loss` holds the logsumexp of the logits near 0, which the softmax itself cannot feel.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

rewards = torch.tensor([1.0, 0.9, 0.9, 0.5, 0.2, 0.1, 0.0, 0.0])  # of 8 actions
labels, mask = torch.arange(8)[None], torch.ones(1, 8)


def entropies(coefficient: float) -> list[float]:
    """A bandit, by the exact policy gradient: each action is a token whose advantage is weighed by its probability."""
    logits = torch.zeros(8, requires_grad=True)
    loss = get_loss("reinforce")
    if coefficient:
        loss = loss + get_loss("entropy_bonus", coefficient=coefficient / 8)  # 8 rows see the same distribution
    curve = []
    for _ in range(200):
        probability = logits.softmax(0).detach()
        advantages = probability * (rewards - probability @ rewards)
        value, _ = loss.on_logits(logits.expand(1, 8, 8), labels, mask=mask, advantages=advantages[None])
        (gradient,) = torch.autograd.grad(value, logits)
        logits = (logits - gradient).detach().requires_grad_()
        curve.append(float(torch.distributions.Categorical(logits=logits.detach()).entropy()))
    return curve


def logsumexps(coefficient: float) -> list[float]:
    """Cross-entropy on a few labels, from logits that begin at an offset of 8."""
    logits = (8.0 + torch.randn(4, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = get_loss("cross_entropy", reduction="token-mean")
    if coefficient:
        loss = loss + get_loss("z_loss", coefficient=coefficient, reduction="token-mean")
    optimizer, curve = torch.optim.SGD([logits], lr=8.0), []
    for _ in range(200):
        value, _ = loss.on_logits(logits[None], torch.arange(4)[None], mask=torch.ones(1, 4))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(float(logits.detach().logsumexp(-1).mean()))
    return curve


open_policies = {c: entropies(c) for c in (0.0, 0.02, 0.1)}
scales = {c: logsumexps(c) for c in (0.0, 0.01, 0.1)}
figure, (left, right) = plt.subplots(1, 2)
for panel, curves in ((left, open_policies), (right, scales)):
    for coefficient, curve in curves.items():
        panel.plot(curve, label=f"{coefficient:g}")
    panel.legend(title="coefficient")
left.set(title="entropy_bonus", xlabel="step", ylabel="entropy of the policy (nats)", ylim=(0, None))
right.set(title="z_loss", xlabel="step", ylabel="logsumexp of the logits (nats)")
plt.show()

# %%
# Softmax is blind to an offset: cross-entropy alone leaves the logsumexp near 8 forever.

print(
    {c: round(curve[-1], 3) for c, curve in open_policies.items()},
    {c: round(curve[-1], 3) for c, curve in scales.items()},
)
assert open_policies[0.0][-1] < open_policies[0.02][-1] < open_policies[0.1][-1]
assert scales[0.1][-1] < 1 < 8 < scales[0.0][-1]
