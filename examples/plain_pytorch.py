"""A loss by name in a plain PyTorch loop: one gradient for one step, however the batch is cut into micro-batches.

`count_tensors` says what a micro-batch adds to the step's denominator, from labels alone. `on_hidden` takes the model's last
hidden states and its head, and holds no [tokens, vocabulary] tensor; `on_logits` takes logits.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lossbook as lb

sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
tokens = torch.arange(12).repeat(8, 1) + 2 * torch.arange(8)[:, None]
lengths = torch.tensor([12, 5, 9, 12, 3, 8, 12, 6])
is_token = torch.arange(12) < lengths[:, None]
labels = tokens.masked_fill(~is_token, -100)


def train(micro_batches: int) -> list[float]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = lb.get_loss("dft")
    nats = []
    for _ in range(5):
        parts = torch.arange(8).chunk(micro_batches)
        denominator = sum(loss.count_tensors(labels=labels[rows, 1:]) for rows in parts)
        metrics = []
        for rows in parts:
            hidden = model.model(tokens[rows], attention_mask=is_token[rows]).last_hidden_state
            value, own = loss.on_hidden(hidden[:, :-1], model, labels[rows, 1:], denominator=denominator)
            value.backward()
            metrics.append(own)
        optimizer.step()
        optimizer.zero_grad()
        nats.append(sum(metrics)["nll"])
    return nats


curves = {micro_batches: train(micro_batches) for micro_batches in (1, 2, 4)}
for micro_batches, nats in curves.items():
    print(f"{micro_batches} micro-batches: {nats[0]:.6f} to {nats[-1]:.6f} nats per token")
