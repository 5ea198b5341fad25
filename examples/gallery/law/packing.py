"""
Packing answers into one row changes no number, if attention keeps to its own
=============================================================================

Answers of unequal length waste much of a padded batch. Laid one after the other in a single row they waste nothing,
but then attention has to end where an answer ends. The trainer's `batching` is "packed", "padded" or "single"; all
three are compared here with what happens where nobody tells the model about the boundaries.
"""

import matplotlib.pyplot as plt
import torch

import lossbook as lb

texts = [
    "A short one.",
    "This one is a good deal longer than the first.",
    "Tiny.",
    "And the last has a middling length.",
]


def run(batching: str) -> tuple[list[torch.Tensor], float, float]:
    """The logprobs of each text's tokens, the loss and the norm of its gradient."""
    training = lb.ServiceClient(batching=batching).create_training_client(base_model="tiny")
    encode = training.get_tokenizer().encode
    data = [lb.datum_from_tokens_weights(ids, [1.0] * len(ids)) for ids in map(encode, texts)]
    output = training.forward_backward(data, "cross_entropy", {"reduction": "token-mean"}).result()
    step = training.optim_step(lb.AdamParams(learning_rate=1e-3)).result()
    logprobs = [one["logprobs"].to_torch() for one in output.loss_fn_outputs]
    return logprobs, output.metrics["loss:sum"], step.metrics["grad_norm"]


runs = {batching: run(batching) for batching in ("single", "padded", "packed")}
training = lb.ServiceClient().create_training_client(base_model="tiny")
ids = [token for text in texts for token in training.get_tokenizer().encode(text)]
one_text = training.forward([lb.datum_from_tokens_weights(ids, [1.0] * len(ids))], "cross_entropy").result()
leaking = one_text.loss_fn_outputs[0]["logprobs"].to_torch()

alone = runs["single"][0]
starts = [
    sum(len(one) + 1 for one in alone[:i]) for i in range(len(alone))
]  # a text's first token has no logprob of its own
read_together = [leaking[start : start + len(one)] for start, one in zip(starts, alone, strict=True)]
others = {"padded": runs["padded"][0], "packed": runs["packed"][0], "one text, no boundaries": read_together}
differences = {label: (torch.cat(rows) - torch.cat(alone)).abs() for label, rows in others.items()}
for label, difference in differences.items():
    plt.plot(difference.clamp(min=1e-9), label=label)
plt.gca().set(xlabel="token, text after text", ylabel="difference of its logprob (nats)", yscale="log")
plt.legend()
plt.show()

# %%
# Differences of the three batchings are rounding of float32. Without boundaries every token after the first text
# reads what came before, and is trained to.

for label, (_, loss, norm) in runs.items():
    print(f"{label:8} loss {loss:.6f} nats per token   gradient norm {norm:.6f}")
lengths = [len(one) for one in alone]
print(f"{sum(lengths)} tokens; padded, these are {len(lengths) * max(lengths)} positions")
assert max(differences["packed"].max(), differences["padded"].max()) < 1e-4
assert differences["one text, no boundaries"].max() > 0.1
