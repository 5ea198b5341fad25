"""
How long a pair is pushed apart: forever in DPO, up to a margin in hinge, to a target in IPO
============================================================================================

Losses over pairs differ in one curve: the push on the margin, as a function of the margin reached so far. It says
what becomes of pairs that are in the right order already, and of pairs whose labels are wrong.
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


def push(loss, margins: torch.Tensor) -> torch.Tensor:
    """[P] -d loss / d margin, of pairs whose chosen answer has risen by half of the margin, and the other fallen."""
    margins = margins.clone().requires_grad_()
    reference = torch.full((2 * len(margins), 1), -50.0, dtype=torch.float64)
    logprobs = reference + torch.stack([margins / 2, -margins / 2], dim=1).reshape(-1, 1)
    value, _ = loss.on_tensors(logprobs, mask=torch.ones_like(reference), ref_logprobs=reference)
    (value * len(margins)).backward()  # value is the mean over pairs
    return -margins.grad


at_zero = {name: push(loss, torch.zeros(1).double()) for name, loss in losses.items()}
for name, loss in losses.items():
    plt.plot(margins, push(loss, margins) / at_zero[name], label=name)
plt.axhline(0, color="grey", linewidth=0.8)
plt.gca().set(xlabel="margin over the reference (nats)", ylabel="push, relative to that at margin 0", ylim=(-2, 4))
plt.legend()
plt.show()

# %%
# Now a scalar margin is trained on each of them, with plain gradient descent, where one label in ten is swapped. The
# curve's zero is where the margin ends.


def trained(name: str) -> list[float]:
    margin, curve = 0.0, []
    for _ in range(300):
        as_labelled, swapped = push(losses[name], torch.tensor([margin, -margin]).double()) / at_zero[name]
        margin += float(0.9 * as_labelled - 0.1 * swapped)
        curve.append(margin)
    return curve


curves = {name: trained(name) for name in losses}
for name, curve in curves.items():
    plt.plot(curve, label=name)
plt.gca().set(xlabel="step", ylabel="margin (nats)", title="one label in ten is swapped")
plt.legend()
plt.show()

print({name: round(curve[-1], 1) for name, curve in curves.items()})
beyond = torch.tensor([11.0]).double()
assert push(losses["hinge"], beyond) == 0 < push(losses["dpo"], beyond)
assert push(losses["ipo"], beyond) < 0  # past its target a pair is pulled back
