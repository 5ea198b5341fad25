"""
With wrong labels, cross-entropy learns the mistakes by heart and dft does not
==============================================================================

A third of the training labels are drawn at random. A model large enough to memorise them shows what each loss makes
of labels that it finds unlikely: cross-entropy pulls hardest at exactly those, focal even more so, while dft weighs
each by the probability that the model gives it already.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import get_loss

CLASSES, ROWS, STEPS = 8, 256, 300
generator = torch.Generator().manual_seed(0)
centres = torch.randn(CLASSES, 16, generator=generator)


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[count, 16] points around the centre of their class, and the class."""
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return centres[labels] + 0.8 * torch.randn(count, 16, generator=generator), labels


points, true = rows(ROWS)
is_wrong = torch.rand(ROWS, generator=generator) < 1 / 3
labels = torch.where(is_wrong, torch.randint(0, CLASSES, (ROWS,), generator=generator), true)
is_wrong = labels != true
held_out, held_out_labels = rows(2000)
losses = {
    "cross_entropy": get_loss("cross_entropy", reduction="token-mean"),
    "focal": get_loss("focal"),
    "label_smoothing": get_loss("label_smoothing", epsilon=0.2, reduction="token-mean"),
    "dft": get_loss("dft"),
}


def train(loss) -> dict[str, list[float]]:
    """Accuracy on held-out points, and the share of wrong labels that the model gives back, at each step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curves: dict[str, list[float]] = {"accuracy": [], "memorised": []}
    for _ in range(STEPS):
        value, _ = loss.on_logits(model(points)[None], labels[None], mask=torch.ones(1, ROWS))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            curves["accuracy"].append(float((model(held_out).argmax(1) == held_out_labels).float().mean()))
            curves["memorised"].append(float((model(points).argmax(1) == labels)[is_wrong].float().mean()))
    return curves


curves = {name: train(loss) for name, loss in losses.items()}
figure, panels = plt.subplots(1, 2, sharex=True)
titles = {"accuracy": "accuracy on held-out points", "memorised": "wrong labels learned by heart"}
for panel, (key, title) in zip(panels, titles.items(), strict=True):
    for name, curve in curves.items():
        panel.plot(curve[key], label=name)
    panel.set(title=title, xlabel="step", ylabel="share", ylim=(0, 1))
panels[1].legend()
plt.show()

# %%
# The other side of the coin: what dft finds unlikely it hardly learns even where the label is right. It suits data
# close to what the model would say anyway.

end = {name: {key: values[-1] for key, values in curve.items()} for name, curve in curves.items()}
for name, numbers in end.items():
    print(f"{name:16} held-out accuracy {numbers['accuracy']:.3f}   wrong labels memorised {numbers['memorised']:.3f}")

assert end["dft"]["memorised"] < 0.5 * end["cross_entropy"]["memorised"]
assert end["dft"]["accuracy"] > end["cross_entropy"]["accuracy"] > 1 / CLASSES
