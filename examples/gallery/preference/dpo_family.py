"""
How long a pair is pushed apart: forever in DPO, up to a margin in hinge, to a target in IPO
============================================================================================

Losses over pairs differ in one curve: the push on the margin, as a function of the margin reached so far. It says what becomes of pairs
that are in the right order already, and of pairs whose labels are wrong.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

losses = {
    "dpo": get_loss("dpo"),
    "robust": get_loss("robust", label_smoothing=0.1),
    "hinge": get_loss("hinge"),
    "ipo": get_loss("ipo"),
    "exo_pair": get_loss("exo_pair", label_smoothing=0.1),
}
margins = torch.linspace(-40, 40, 161, dtype=torch.float64)
mask, reference = torch.ones(2, 1), torch.full((2, 1), -50.0, dtype=torch.float64)


def push(loss, margin: torch.Tensor) -> float:
    """-d loss / d margin of one pair of answers, whose chosen one has risen by half of the margin and the other fallen."""
    margin = margin.clone().requires_grad_()
    logprobs = reference + torch.stack([margin / 2, -margin / 2])[:, None]
    value, _ = loss.on_tensors(logprobs, mask=mask, ref_logprobs=reference)
    value.backward()
    return -margin.grad.item()


pushes = {name: [push(loss, margin) for margin in margins] for name, loss in losses.items()}
for name, values in pushes.items():
    plt.plot(margins, [value / push(losses[name], torch.tensor(0.0).double()) for value in values], label=name)
plt.axhline(0, color="grey", linewidth=0.8)
plt.gca().set(xlabel="margin over the reference (nats)", ylabel="push, relative to that at margin 0", ylim=(-2, 4))
plt.legend()
plt.show()

# %%
# Now a scalar margin is trained on each of them, with plain gradient descent, where one label in ten is swapped. The curve's zero is
# where the margin ends.


def trained(loss) -> list[float]:
    margin, curve = 0.0, []
    scale = push(loss, torch.tensor(0.0).double())
    for _ in range(600):
        here = torch.tensor(margin).double()
        margin += (0.9 * push(loss, here) - 0.1 * push(loss, -here)) / scale
        curve.append(margin)
    return curve


curves = {name: trained(loss) for name, loss in losses.items()}
for name, curve in curves.items():
    plt.plot(curve, label=name)
plt.gca().set(xlabel="step", ylabel="margin (nats)", title="one label in ten is swapped")
plt.legend()
plt.show()

print({name: round(curve[-1], 1) for name, curve in curves.items()})
assert push(losses["hinge"], torch.tensor(11.0).double()) == 0 < push(losses["dpo"], torch.tensor(11.0).double())
assert push(losses["ipo"], torch.tensor(11.0).double()) < 0  # past its target a pair is pulled back
