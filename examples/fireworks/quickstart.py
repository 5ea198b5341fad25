"""Page "Quickstart": a chat turn as a datum, and a custom loss, divided by its tokens, until the answer is learned.

On the page the service is `FiretitanServiceClient.from_firetitan_config(...)`; the rest is the page's program, with a tiny model.
"""

import torch

import lossbook as tinker

service = tinker.ServiceClient()
training_client = service.create_training_client(base_model="tiny", lora_rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

conversation = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]
full_tokens = tokenizer.encode(tokenizer.apply_chat_template(conversation, tokenize=False))
prompt_len = len(tokenizer.encode(tokenizer.apply_chat_template(conversation[:1], tokenize=False)))

weights = torch.zeros(len(full_tokens), dtype=torch.float32)
weights[prompt_len:] = 1.0
datum = tinker.datum_from_model_input_weights(tinker.ModelInput.from_ints(full_tokens), weights, max_length=4096)


def sft_loss(data, logprobs_list):
    total, tokens = torch.zeros(()), 0.0
    for one, logprobs in zip(data, logprobs_list, strict=True):
        own = torch.tensor(one.loss_fn_inputs["weights"].data, dtype=torch.float32)
        total = total - torch.dot(logprobs.float(), own)
        tokens += own.sum().item()
    return total / max(tokens, 1), {"sft_loss": (total / max(tokens, 1)).item(), "n_tokens": tokens}


losses = []
adam = tinker.AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
for step in range(10):
    result = training_client.forward_backward_custom([datum], sft_loss).result()
    training_client.optim_step(adam).result()
    losses.append(result.metrics["sft_loss"])
    print(step, losses[-1], result.metrics["n_tokens"])

saved = training_client.save_weights_for_sampler("sft-final", checkpoint_type="base").result()
print("saved:", saved.path)
