"""
With matryoshka an eighth of the coordinates finds almost as much as all of them
================================================================================

`matryoshka` adds a loss over the first coordinates to the loss over all. The vectors can then be cut: a smaller
index, a first pass of a search. Two encoders are trained on the same pairs, one with it and one without, and both are
asked with shortened vectors.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import normalize

from lossbook import get_loss, matryoshka

WIDTH, ROWS, STEPS = 64, 256, 150
generator = torch.Generator().manual_seed(0)
topics = torch.randn(2 * ROWS, 12, generator=generator)  # what a text is about; both texts of a pair share it
mixing = torch.randn(2, 12, 48, generator=generator)  # queries and documents speak of it in different ways
noise = torch.randn(2, 2 * ROWS, 48, generator=generator)
queries, documents = torch.einsum("rt,stw->srw", topics, mixing) + 1.2 * noise
lengths = (2, 4, 8, 16, 32, 64)


def recalls(loss) -> list[float]:
    """Recall at 1 among held-out documents, by the number of coordinates that are kept."""
    torch.manual_seed(0)
    towers = torch.nn.ModuleList(torch.nn.Linear(48, WIDTH) for _ in range(2))
    optimizer = torch.optim.Adam(towers.parameters(), lr=3e-3)
    for _ in range(STEPS):
        vectors = torch.cat([towers[0](queries[:ROWS]), towers[1](documents[:ROWS])])
        value, _ = loss.on_tensors(embeddings=vectors)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        asked, kept = towers[0](queries[ROWS:]), towers[1](documents[ROWS:])
        cut = [normalize(asked[:, :n]) @ normalize(kept[:, :n]).T for n in lengths]
    return [float((one.argmax(1) == torch.arange(ROWS)).float().mean()) for one in cut]


plain = get_loss("info_nce", temperature=0.1)
curves = {
    "info_nce": recalls(plain),
    "matryoshka(info_nce)": recalls(matryoshka(plain, dims=(64, 16, 8, 4))),
}
for label, curve in curves.items():
    plt.plot(lengths, curve, marker="o", label=label)
plt.gca().set(xlabel="coordinates kept", ylabel=f"recall at 1 of {ROWS} held-out documents", xscale="log", ylim=(0, 1))
plt.xticks(lengths, [str(n) for n in lengths])
plt.legend()
plt.show()

for label, curve in curves.items():
    print(f"{label:22}", {n: round(value, 2) for n, value in zip(lengths, curve, strict=True)})

at = lengths.index(8)
assert curves["matryoshka(info_nce)"][at] > curves["info_nce"][at] + 0.1
assert curves["matryoshka(info_nce)"][at] > 0.9 * curves["matryoshka(info_nce)"][-1]
