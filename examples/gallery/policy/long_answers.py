"""
A mean over each answer forgives long wrong answers
===================================================

Two answers to one prompt: a right one of 20 tokens (A = +1) and a wrong one (A = -1) that grows from 10 to 200
tokens. How hard is the wrong answer pushed down, and how much does each of its tokens count? That is decided by the
reduction alone: the losses below share one clipped surrogate.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

LIMIT = 200  # most tokens in an answer
lengths = torch.arange(10, LIMIT + 1, 10)
reductions = {
    "mean over each answer, as in GRPO's paper": get_loss("grpo", reduction="seq-mean-token-mean", kl_coefficient=0.0),
    "mean over all tokens: grpo, dapo": get_loss("dapo"),
    "a constant length: dr_grpo": get_loss("dr_grpo", norm_length=LIMIT),
}


def push_down(loss, length: int) -> torch.Tensor:
    """[length] d loss / d logprob of the wrong answer's tokens, on policy."""
    mask = torch.arange(LIMIT) < torch.tensor([[20], [length]])
    logprobs = torch.full((2, LIMIT), -1.0, requires_grad=True)
    value, _ = loss.on_tensors(
        logprobs, mask=mask, sampling_logprobs=logprobs.detach(), advantages=torch.tensor([1.0, -1.0])
    )
    value.backward()
    return logprobs.grad[1, :length]


pushes = {label: [push_down(loss, int(n)) for n in lengths] for label, loss in reductions.items()}

figure, (per_token, in_all) = plt.subplots(1, 2)
for label, rows in pushes.items():
    per_token.plot(lengths, [row.mean() for row in rows], label=label)
    in_all.plot(lengths, [row.sum() for row in rows], label=label)
per_token.set(title="on each token of the wrong answer", ylabel="push down", xlabel="its length (tokens)")
in_all.set(title="on the whole wrong answer", xlabel="its length (tokens)")
in_all.legend()
plt.show()

# %%
# Under a mean over each answer, a wrong answer of 200 tokens is punished no more than one of 10, so each token of it
# costs a twentieth: a policy that is wrong anyway loses least by rambling. A mean over all tokens and a constant
# length punish in proportion; the first makes the right answer count less as the wrong one grows, the second does
# not.

short, long = {}, {}
for label, rows in pushes.items():
    short[label], long[label] = float(rows[0].mean()), float(rows[-1].mean())
    print(f"{label:42} 10 tokens: {short[label]:.4f} per token   200 tokens: {long[label]:.4f}")

paper, all_tokens, constant = reductions
assert abs(short[paper] / long[paper] - 20) < 1e-4
assert abs(short[constant] - long[constant]) < 1e-7
assert abs(short[all_tokens] / long[all_tokens] - 220 / 30) < 1e-4
