"""A custom loss: any function of the datums and one logprob tensor per datum.

It returns a scalar with a graph, and metrics. `logprobs_list[i]` is on the CPU and has one entry per target token of datum i, those
of weight 0 included. The function does the reduction (here: the mean over datums of token sums).
"""

import torch

import lossbook as tinker


def weighted_cross_entropy(data, logprobs_list):
    total = torch.tensor(0.0)
    tokens = 0.0
    for i, logprobs in enumerate(logprobs_list):
        weights = torch.tensor(data[i].loss_fn_inputs["weights"].data, dtype=torch.float32)
        total = total - torch.dot(logprobs, weights)
        tokens += weights.sum().item()
    loss = total / len(data)
    return loss, {"nats_per_token": total.item() / tokens}


service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

datums = []
for question, answer in [("2 + 2 =", " 4"), ("3 + 4 =", " seven")]:
    prompt, response = tokenizer.encode(question), tokenizer.encode(answer)
    tokens = torch.tensor(prompt + response)
    weights = torch.zeros(len(tokens))
    weights[len(prompt) :] = 1.0
    datums.append(tinker.datum_from_tokens_weights(tokens, weights, max_length=4096))

nats_per_token = []
for step in range(10):
    result = training_client.forward_backward_custom(datums, weighted_cross_entropy).result()
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    nats_per_token.append(result.metrics["nats_per_token"])
    print(step, result.metrics["loss:sum"], nats_per_token[-1])
