"""
PPO's clip ends the gradient on one side, CISPO's on none
=========================================================

A policy loss multiplies each token's ratio r = π(token) / sampler(token) by its advantage A. What happens once r has
moved past a bound is where these losses differ. Below, each loss is evaluated at many ratios, and autograd gives the
push on the token's logprob: above 0 the step makes the token likelier.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

log_ratio = torch.linspace(-0.7, 0.7, 281, dtype=torch.float64)
sampled = torch.full_like(log_ratio, -2.0)


def push(name: str, advantage: float, **settings: float) -> torch.Tensor:
    """-d loss / d logprob of one token, at each log-ratio."""
    logprobs = (sampled + log_ratio).requires_grad_()
    loss = get_loss(name, reduction="sum", **settings)
    value, _ = loss.on_tensors(
        logprobs,
        mask=torch.ones_like(sampled),
        sampling_logprobs=sampled,
        advantages=torch.full_like(sampled, advantage),
    )
    value.backward()
    return -logprobs.grad


losses = {
    "ppo, bounds 0.8 and 1.2": ("ppo", {"clip_low": 0.8, "clip_high": 1.2}),
    "dapo, bounds 0.8 and 1.28": ("dapo", {}),
    "cispo, weight at most 1.2": ("cispo", {"clip_high": 1.2}),
    "sapo, no bound": ("sapo", {}),
}
pushes = {(label, a): push(name, a, **own) for label, (name, own) in losses.items() for a in (1.0, -1.0)}

figure, panels = plt.subplots(1, 2, sharex=True)
for panel, advantage in zip(panels, (1.0, -1.0), strict=True):
    for label in losses:
        panel.plot(log_ratio.exp(), pushes[label, advantage], label=label)
    panel.set(title=f"A = {advantage:+.0f}", xlabel="ratio r")
panels[0].set_ylabel("push on the token's logprob")
panels[0].legend()
plt.show()

# %%
# A rewarded token (left) stops being pushed once it has risen past the upper bound; DAPO's higher bound leaves rare
# tokens more room. A punished token (right) stops at the lower bound. On the other side the push goes on, and grows
# with r: an already likelier token that turned out bad is pulled back in full. CISPO only holds the weight, so that
# no token ever drops out.

risen, fallen = log_ratio.exp() > 1.3, log_ratio.exp() < 0.79
for label in losses:
    print(
        f"{label:26}  A=+1 beyond 1.3: {pushes[label, 1.0][risen].abs().max():.2f}"
        f"   A=-1 below 0.79: {pushes[label, -1.0][fallen].abs().max():.2f}"
    )

assert pushes["ppo, bounds 0.8 and 1.2", 1.0][risen].abs().max() == 0
assert pushes["ppo, bounds 0.8 and 1.2", -1.0][risen].min() < -1.3
assert (pushes["cispo, weight at most 1.2", 1.0] > 0).all()
