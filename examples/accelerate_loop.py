"""A loss in an Accelerate loop: rows of unequal lengths, two micro-batches a step, one denominator for all of them.

    accelerate launch examples/accelerate_loop.py

Accelerate divides each loss by the number of micro-batches, and gradients by that of processes. A loss over the count of the
whole step needs neither, so it is multiplied by both.
"""

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from lossbook import get_loss

torch.manual_seed(0)
config = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
loss = get_loss("dft")

accelerator = Accelerator(gradient_accumulation_steps=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)
rows = [torch.arange(2, 2 + length) % 16 for length in (5, 9, 7, 14, 6, 11, 8, 12)]  # each token is the last plus one
rows = rows[accelerator.process_index :: accelerator.num_processes]
labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
batches = labels.to(accelerator.device).chunk(accelerator.gradient_accumulation_steps)
scale = accelerator.gradient_accumulation_steps * accelerator.num_processes

nats_per_token = []
for _ in range(15):
    count = accelerator.reduce(sum(loss.count_tensors(labels=batch[:, 1:]) for batch in batches))
    metrics = 0
    for batch in batches:
        with accelerator.accumulate(model):
            logits = model(batch.clamp(min=0)).logits  # causal: padding on the right changes nothing to its left
            value, its = loss.on_logits(logits[:, :-1], batch[:, 1:], denominator=count)
            accelerator.backward(scale * value)
            optimizer.step()
            optimizer.zero_grad()
        metrics += its
    nats_per_token.append(metrics["nll"])
print(f"nats per token: {nats_per_token[0]:.3f} -> {nats_per_token[-1]:.3f}")
