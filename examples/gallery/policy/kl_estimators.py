"""
Of the KL estimators k1, k2 and k3, only one is unbiased, never negative and steady
===================================================================================

A KL to the reference is usually estimated from the logprob of the one token that was sampled. With d = logprob -
ref_logprob the estimators are k1 = d, k2 = d²/2 and k3 = exp(-d) - 1 + d (Schulman 2020). Here the policy is a
distribution over 32 tokens, so that the true KL, and the bias, the spread and the expected gradient of each
estimator, come from exact sums over all tokens.
"""

import matplotlib.pyplot as plt
import torch

from lossbook import kl_estimate
from lossbook.losses import forward_kl

generator = torch.Generator().manual_seed(0)
start, direction = torch.randn(2, 32, generator=generator, dtype=torch.float64)
reference = start.log_softmax(0)
estimators = ("k1", "k2", "k3")
distances = torch.linspace(0.05, 1.2, 24)


def exact(distance: float, estimator: str) -> dict[str, float]:
    """Mean, deviation and expected gradient of an estimator where the policy is `distance` away from the reference."""
    logits = (start + distance * direction).requires_grad_()
    policy = logits.log_softmax(0)
    probability = policy.detach().exp()
    estimate = kl_estimate(policy, reference, estimator)
    (gradient,) = torch.autograd.grad((probability * estimate).sum(), logits, retain_graph=True)
    true = forward_kl(reference, policy)  # KL(policy || reference)
    (wanted,) = torch.autograd.grad(true, logits)
    estimate, kl = estimate.detach(), true.item()
    mean = probability @ estimate
    deviation = (probability @ (estimate - mean).square()).sqrt()
    return {
        "kl": kl,
        "bias": float(mean) / kl - 1,
        "deviation": float(deviation) / kl,
        "gradient": float(gradient @ wanted / wanted.square().sum()),
    }


rows = {estimator: [exact(float(d), estimator) for d in distances] for estimator in estimators}
figure, panels = plt.subplots(1, 3, figsize=(9, 3))
titles = {"bias": "bias / KL", "deviation": "deviation / KL", "gradient": "expected gradient / KL's own"}
for panel, (key, title) in zip(panels, titles.items(), strict=True):
    for estimator in estimators:
        panel.plot([row["kl"] for row in rows[estimator]], [row[key] for row in rows[estimator]], label=estimator)
    panel.set(title=title, xlabel="true KL (nats)", xscale="log")
panels[1].set_yscale("log")
panels[0].legend()
plt.show()

# %%
# Near the reference k1 is mostly noise, and half of its values are negative; k2 and k3 are steady. k2 is biased as
# the policy moves away, k3 never is. The gradient is another matter (right): as a term of the loss k1 has none in
# expectation, and k2 has exactly the KL's. That is what the estimator "k3+" is for: k3's value with k2's gradient.

for estimator in estimators:
    near, far = rows[estimator][0], rows[estimator][-1]
    print(
        f"{estimator}: at {near['kl']:.4f} nats deviation {near['deviation']:6.1f} KL; at {far['kl']:.2f} nats bias {far['bias']:+.2f}, "
        f"gradient {far['gradient']:+.2f}"
    )

assert max(abs(row["bias"]) for e in ("k1", "k3") for row in rows[e]) < 1e-9
assert rows["k1"][0]["deviation"] > 10 * rows["k3"][0]["deviation"]
assert max(abs(row["gradient"]) for row in rows["k1"]) < 1e-9
assert all(abs(row["gradient"] - 1) < 1e-9 for row in rows["k2"])
