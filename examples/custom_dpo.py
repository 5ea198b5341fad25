"""DPO as a custom loss: the margin between data[0], the chosen answer, and data[1], the rejected one.

The reference logprobs come from a forward pass before the first step, so the loss begins at ln 2 and the margin at 0.
"""

import torch

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompt = tokenizer.encode("How are you? ")
datums = []
for answer in ("Very well, thank you!", "Go away."):
    tokens = tokenizer.encode(answer)
    datums.append(tinker.datum_from_tokens_weights(prompt + tokens, [0.0] * len(prompt) + [1.0] * len(tokens)))

reference = training_client.forward(datums, "cross_entropy").result()
ref_logprobs = [torch.tensor(output["logprobs"].data) for output in reference.loss_fn_outputs]


def dpo(data, logprobs_list, beta=0.1):
    gains = []
    for i in range(2):
        weights = torch.tensor(data[i].loss_fn_inputs["weights"].data)
        gains.append(torch.dot(weights, logprobs_list[i] - ref_logprobs[i]))
    margin = gains[0] - gains[1]
    loss = -torch.nn.functional.logsigmoid(beta * margin)
    return loss, {"margin": margin.item(), "accuracy": float(margin > 0)}


losses, margins = [], []
for step in range(5):
    metrics = training_client.forward_backward_custom(datums, dpo).result().metrics
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    losses.append(metrics["loss:sum"])
    margins.append(metrics["margin"])
    print(step, losses[-1], margins[-1])
