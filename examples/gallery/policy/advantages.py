"""
Dividing by the group's deviation makes hard and easy prompts count as much as open ones
========================================================================================

Group-relative advantages compare the answers to one prompt with each other. With 16 answers that are right or wrong,
all that a prompt can be is its success rate. How much each rule then pushes is the sum of the advantages' sizes.
"""

import matplotlib.pyplot as plt
import torch

from lossbook.losses.advantages import centred, group_advantages, maxrl, rloo

N = 16
rules = {
    "centred (Dr. GRPO)": centred,
    "rloo": rloo,
    "divided by the deviation (GRPO)": group_advantages,
    "divided by the mean (MaxRL)": maxrl,
}
right = range(N + 1)
rewards = [[1.0] * k + [0.0] * (N - k) for k in right]
sizes = {label: [float(rule(r).abs().mean()) for r in rewards] for label, rule in rules.items()}

for label, size in sizes.items():
    plt.plot([k / N for k in right], size, marker=".", label=label)
plt.gca().set(xlabel="success rate of the prompt's answers", ylabel="mean size of an advantage")
plt.legend()
plt.show()

# %%
# All four are silent where every answer is right, or none. Centred rewards favour prompts of even odds, where an
# answer says most. Divided by the deviation, a prompt with one right answer in 16 still has half the weight of an
# even one, not a quarter; divided by the mean, that prompt counts most of all.
#
# RLOO leaves the answer itself out of its baseline. That is the centred advantage times n / (n - 1): a constant
# factor, which matters as much as a slightly larger learning rate.

one, half = 1, N // 2
for label, size in sizes.items():
    print(f"{label:32} 1 of 16 right: {size[one]:.3f}   8 of 16: {size[half]:.3f}   ratio {size[one] / size[half]:.2f}")

factor = rloo(rewards[3]) / centred(rewards[3])
assert torch.allclose(factor, torch.full_like(factor, N / (N - 1)))
assert all(size[0] == size[N] == 0 for size in sizes.values())
assert sizes["centred (Dr. GRPO)"][one] < 0.25 * sizes["centred (Dr. GRPO)"][half]
assert sizes["divided by the deviation (GRPO)"][one] > 0.45 * sizes["divided by the deviation (GRPO)"][half]
assert max(sizes["divided by the mean (MaxRL)"]) == sizes["divided by the mean (MaxRL)"][one]
