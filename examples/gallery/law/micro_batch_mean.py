"""
The story of a loss that depended on micro-batches, and of the law that ends it
===============================================================================

Gradient accumulation is meant to change nothing but memory: eight micro-batches of one row, or one batch of eight. In
October 2024 a user of TRL trained SmolLM-135M both ways, and accumulation was much worse (`trl#2175
<https://github.com/huggingface/trl/issues/2175>`_). The cause was in most training code of the time, and known to
some since 2021 (`Unsloth's release notes <https://github.com/unslothai/unsloth/releases/tag/October-2024>`_): a
model's loss was the mean over the tokens of *its micro-batch*, and the trainer took the mean of these means. Rows of
unequal length then weigh their tokens unequally. `transformers#34191
<https://github.com/huggingface/transformers/pull/34191>`_ hands the step's token count to the loss,
`num_items_in_batch`. Models and losses that did not know it stayed wrong by other factors, into 2025 (`#35556
<https://github.com/huggingface/transformers/issues/35556>`_, `#37197
<https://github.com/huggingface/transformers/issues/37197>`_).

Here are the two ways in plain PyTorch.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

import lossbook as lb
from lossbook.cookbook.quickstart import find_smollm2
from lossbook.testing import check_loss

loss = lb.get_loss("cross_entropy", reduction="token-mean")


def accumulate_means(model, micro_batches: list[Tensor]) -> None:
    """As before October 2024."""
    for labels in micro_batches:
        logits = model(labels.clamp(min=0)).logits
        value = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        (value / len(micro_batches)).backward()


def accumulate_by_law(model, micro_batches: list[Tensor]) -> None:
    """One denominator for the step, counted before the first forward."""
    count = sum(loss.count_tensors(labels=labels[:, 1:]) for labels in micro_batches)
    for labels in micro_batches:
        logits = model(labels.clamp(min=0)).logits
        loss.on_logits(logits[:, :-1], labels[:, 1:], denominator=count)[0].backward()


def padded(rows: list[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-100)


# %%
# One step of a real model, SmolLM2-135M: three curt answers and a long one, in one micro-batch and in four. The
# gradient is that of the model's last layer.

training = lb.ServiceClient().create_training_client(base_model=find_smollm2())
model, encode = training.local.model.module, training.get_tokenizer().encode  # transformers' model, and its tokenizer
model.requires_grad_(False)
last = model.model.layers[-1].requires_grad_(True)
texts = ["Snow is white.", "Coal is black.", "Two and two is four."]
texts += ["The sky is blue because air scatters short waves of light much more strongly than it scatters long ones."]
rows = [encode(text) for text in texts]


def gradient(accumulate, micro_batches: list[Tensor]) -> Tensor:
    model.zero_grad()
    accumulate(model, micro_batches)
    return torch.cat([parameter.grad.flatten() for parameter in last.parameters()])


whole = gradient(accumulate_means, [padded(rows)])
errors = {}
for accumulate in (accumulate_means, accumulate_by_law):
    cut = gradient(accumulate, [padded([row]) for row in rows])
    errors[accumulate.__name__] = float((cut - whole).norm() / whole.norm())
    print(
        f"{accumulate.__name__:17} differs from the whole batch's gradient by {errors[accumulate.__name__]:.2%} of its norm"
    )

# %%
# Then a whole training, of a small model on text of unequal lengths: the names (short) and the descriptions (long) of
# all registered losses, eight to a step.

cards = [lb.describe_loss(name) for name in lb.list_losses()]
data = [list(text.encode()[:128]) for card in cards for text in (card.name, card.description) if text]
torch.manual_seed(0)
order = torch.randperm(len(data)).tolist()
held_out, trained_on = padded([data[i] for i in order[:16]]), [data[i] for i in order[16:]]
sizes = {
    "vocab_size": 256,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def train(accumulate, rows_per_micro_batch: int, steps: int = 60) -> list[float]:
    """Nats per token on held-out text, at every tenth step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    optimizer, nats = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for step in range(steps):
        batch = [trained_on[(8 * step + i) % len(trained_on)] for i in range(8)]
        accumulate(model, [padded(batch[i : i + rows_per_micro_batch]) for i in range(0, 8, rows_per_micro_batch)])
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            with torch.no_grad():
                value, _ = loss.on_logits(model(held_out.clamp(min=0)).logits[:, :-1], held_out[:, 1:])
            nats.append(float(value))
    return nats


runs = {
    "one batch of 8 rows": train(accumulate_means, 8),
    "mean of 8 micro-batches' means": train(accumulate_means, 1),
    "8 micro-batches, by the law": train(accumulate_by_law, 1),
}
for (label, nats), line in zip(runs.items(), ("-", "-", "--"), strict=True):
    plt.plot(range(10, 61, 10), nats, line, marker="o", label=label)
plt.gca().set(xlabel="step", ylabel="held-out loss (nats per token)")
plt.legend()
plt.show()

for label, nats in runs.items():
    print(f"{label:31} {nats[-1]:.4f} nats per token after 60 steps")

# %%
# Every row weighs the same there, so a name's eight bytes count as much as a description's 128, and the text is
# learned more slowly. By the law the run is that of the whole batch.
#
# The law that ends it: **a loss gives sums, and the step's data give the denominator.** In lossbook a loss cannot
# divide, so the mistake has to be made on purpose. `check_loss` then says so, before any training:


def mean_of_the_micro_batch(logprobs: Tensor) -> Tensor:
    """-logprobs / n, where n is the number of tokens in this micro-batch."""
    return -logprobs / max(1, logprobs.numel())


report = check_loss(mean_of_the_micro_batch, on_fail="report", checks=["law_micro_batches"], max_examples=20)
print(report.failures[0].message)

one_batch, means, law = (nats[-1] for nats in runs.values())
assert errors["accumulate_by_law"] < 1e-4 < 0.1 < errors["accumulate_means"]
assert abs(law - one_batch) < 1e-3 < 0.03 < means - one_batch
assert not report.passed
