"""
A low temperature looks at the hardest negative only
====================================================

In a contrastive loss every other document of the batch is a negative. The temperature decides how the push is shared
among them: here a query has its partner at cosine 0.8 and seven negatives between -0.6 and 0.75, and autograd gives
the push on each.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import Datum, ModelInput, get_loss

cosines = torch.tensor([0.8, 0.75, 0.5, 0.3, 0.1, -0.1, -0.3, -0.6], dtype=torch.float64)
temperatures = (0.02, 0.05, 0.2, 1.0)
texts = [Datum(ModelInput.from_ints([0]))] * 16  # their embeddings are given below


def shares(temperature: float) -> torch.Tensor:
    """[7] how the push on the query's cosines is shared among the negatives; sums to 1."""
    query = torch.eye(9, dtype=torch.float64)[0]
    own = torch.eye(9, dtype=torch.float64)[1:]  # each document has a direction of its own beside the query's
    pulled = cosines.clone().requires_grad_()
    documents = pulled[:, None] * query + (1 - pulled**2).sqrt()[:, None] * own
    others = -torch.eye(9, dtype=torch.float64)[2:]  # queries of the other documents, far from this one
    embeddings = torch.cat([query[None], others, documents])
    loss = get_loss("multiple_negatives_ranking", scale=1 / temperature)
    losses = loss.values(texts, {"embeddings": list(embeddings)})
    (gradient,) = torch.autograd.grad(losses[0], pulled)  # the first query's own loss
    return gradient[1:] / gradient[1:].sum()


pushes = {temperature: shares(temperature) for temperature in temperatures}
for temperature, push in pushes.items():
    plt.plot(cosines[1:], push, marker="o", label=f"{temperature:g}")
plt.gca().set(xlabel="cosine of the negative and the query", ylabel="share of the push")
plt.legend(title="temperature")
plt.show()

# %%
# Low temperatures find fine distinctions, and are misled by a negative that is in truth another right answer: it
# would be the hardest one. Near 1 all negatives are pushed alike, those too that are far away already.

for temperature, push in pushes.items():
    print(f"temperature {temperature:4g}: hardest negative {push[0]:.2f}, easiest {push[-1]:.4f} of the push")
assert pushes[0.02][0] > 0.99
assert pushes[1.0][0] < 0.3
