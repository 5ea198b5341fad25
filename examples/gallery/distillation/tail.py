"""
What a teacher's top K leaves out has to be somewhere: as one more token, or anywhere
=====================================================================================

A server gives the teacher's K likeliest tokens per position. The setting `tail` says what the loss makes of all
others. Here a student begins with most of its probability on tokens that the teacher never names, and learns from the
teacher's top 4 of 64 tokens.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

V, K, STEPS = 64, 4, 200
teacher = torch.randn(V, generator=torch.Generator().manual_seed(0)).mul(1.5).log_softmax(0)
top, candidates = teacher.topk(K)
mask = torch.ones(1, 1)


def mass(tail: str) -> list[float]:
    """The student's probability of the teacher's K candidates, at each step."""
    student = torch.zeros(V)
    student[-32:] = 3.0
    student[candidates] = 0.0
    student.requires_grad_()
    loss, optimizer, curve = get_loss("topk_forward_kl", tail=tail), torch.optim.Adam([student], lr=0.1), []
    for _ in range(STEPS):
        value, _ = loss.on_logits(
            student[None, None], candidates[None, None], mask=mask, teacher_logprobs=top[None, None]
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(float(student.detach().softmax(0)[candidates].sum()))
    return curve


curves = {tail: mass(tail) for tail in ("bin", "drop", "renormalise")}
for tail, curve in curves.items():
    plt.plot(curve, label=tail)
plt.axhline(float(top.exp().sum()), color="grey", linestyle="--", label="the teacher's")
plt.gca().set(xlabel="step", ylabel=f"probability of the {K} candidates", ylim=(0, 1.05))
plt.legend(title="tail")
plt.show()

# %%
# With `bin` all other tokens are one more candidate, and the student ends at the teacher's mass. `drop` leaves their
# term out: the minimum lies beyond the teacher, at a mass of 1. `renormalise` compares the candidates among
# themselves only, and the student's mass stays where it was, on tokens that the teacher would not say.

wanted = float(top.exp().sum())
print(f"teacher {wanted:.3f}", {tail: round(curve[-1], 3) for tail, curve in curves.items()})
assert abs(curves["bin"][-1] - wanted) < 0.01
assert curves["renormalise"][-1] < 0.2 < wanted + 0.01 < curves["drop"][-1]
