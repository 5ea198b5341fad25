"""
Forward KL covers all that the teacher does, reverse KL picks one thing
=======================================================================

A teacher with two opinions, and a student that can have only one: its distribution over 48 tokens is a bump with a
place and a width. Which compromise it finds is decided by the direction of the divergence.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

V = 48
tokens = torch.arange(V, dtype=torch.float64)


def bump(place: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """[V] logprobs."""
    return (-((tokens - place) ** 2) / (2 * width**2)).log_softmax(0)


one, other = (bump(torch.tensor(place).double(), torch.tensor(2.5).double()) for place in (12, 34))
teacher = torch.logaddexp(one + torch.tensor(0.6).double().log(), other + torch.tensor(0.4).double().log())
losses = {
    "forward KL": get_loss("topk_forward_kl", tail="drop"),
    "Jensen-Shannon": get_loss("topk_jsd", tail="drop"),
    "reverse KL": get_loss("topk_reverse_kl", tail="drop"),
}


def fitted(loss) -> torch.Tensor:
    """[V] probabilities of the student that learned from the teacher's whole distribution."""
    place = torch.tensor(15.0, dtype=torch.float64, requires_grad=True)
    log_width = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([place, log_width], lr=0.1)
    for _ in range(250):
        logprobs = bump(place, log_width.exp())
        value, _ = loss.on_tensors(logprobs[None, None], mask=torch.ones(1, 1), teacher_logprobs=teacher[None, None])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return bump(place, log_width.exp()).exp().detach()


students = {label: fitted(loss) for label, loss in losses.items()}
plt.fill_between(tokens, teacher.exp(), color="lightgrey", label="teacher")
for label, student in students.items():
    plt.plot(tokens, student, label=label)
plt.gca().set(xlabel="token", ylabel="probability")
plt.legend()
plt.show()

# %%
# The forward KL is infinite where the student rules out what the teacher may say, so the student spreads, and says
# much that the teacher never would. The reverse KL punishes only what the student itself says: it settles on the
# likelier opinion.

never = teacher.exp() < 1e-3
for label, student in students.items():
    print(
        f"{label:15} probability of what the teacher would not say: {student[never].sum():.3f}   width {student.max() ** -1:.1f}"
    )
assert students["forward KL"][never].sum() > 10 * students["reverse KL"][never].sum()
