"""
GAE's decay trades missed credit for noise, and the best is in between
======================================================================

Generalized advantage estimation weighs the critic's k-step errors by decay^k. Here each action pays 1 or 0, but only
4 steps later, and the critic does not see the payment coming. At decay 0 the advantage is one step of that critic:
steady, and blind to the action. At decay 1 it is the return minus the critic's value: right on average, and noisy
with all that happens until the end.
"""

import matplotlib.pyplot as plt
import torch

from lossbook.losses.returns import gae

T, DELAY, EPISODES = 32, 4, 1024
generator = torch.Generator().manual_seed(0)
actions = torch.randint(0, 2, (EPISODES, T - DELAY), generator=generator).double()
rewards = 0.3 * torch.randn(EPISODES, T, generator=generator, dtype=torch.float64)
rewards[:, DELAY:] += actions
critic = 0.5 * torch.tensor(
    [T - max(t, DELAY) for t in range(T)], dtype=torch.float64
)  # the mean of what is still to come

decays = [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
credit, deviation = [], []
for decay in decays:
    advantages = torch.stack([gae(row, critic, decay=decay)[0] for row in rewards])[:, : T - DELAY]
    taken, left = advantages[actions == 1], advantages[actions == 0]
    credit.append(float(taken.mean() - left.mean()))  # 1 is right
    deviation.append(float((taken.var() + left.var()).sqrt()))

figure, (left_panel, right_panel) = plt.subplots(1, 2)
left_panel.plot(decays, credit, marker="o", label="credit of an action (1 is right)")
left_panel.plot(decays, deviation, marker="o", label="its deviation in one answer")
left_panel.set(xlabel="decay", ylabel="reward", ylim=(0, None))
left_panel.legend()
errors = {}
for count in (1, 16, 256):
    errors[count] = [((1 - c) ** 2 + d**2 / count) ** 0.5 for c, d in zip(credit, deviation, strict=True)]
    right_panel.plot(decays, errors[count], marker="o", label=f"{count}")
right_panel.set(xlabel="decay", ylabel="error of the mean credit (reward)", ylim=(0, None))
right_panel.legend(title="answers averaged over")
plt.show()

# %%
# The more answers a step averages over, the less noise weighs, and the closer to 1 the best decay lies.

best = {count: decays[error.index(min(error))] for count, error in errors.items()}
print(f"credit at decay 0: {credit[0]:.2f}, at decay 1: {credit[-1]:.2f}")
print("best decay by number of answers:", best)
assert abs(credit[0]) < 0.1 < 0.85 < credit[-1] < 1.15
assert best[1] < best[16] <= best[256]
