"""Page "Loss Functions": the built-in loss, a forward alone, and custom losses on logprobs; examples/ has a script for each section.

A loss by name and the same as a function give one gradient, and cost the same here: one forward and one backward.
"""

import torch

import lossbook as tinker

service = tinker.ServiceClient()
training_client = service.create_training_client("tiny", lora_rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompt = tokenizer.encode("2 + 3 =")
chosen, rejected = (
    tinker.datum_from_tokens_weights(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))
    for answer in (tokenizer.encode(" 5"), tokenizer.encode(" 23"))
)


def cross_entropy_loss(data, logprobs_list):
    total_loss = torch.tensor(0.0)
    for one, logprobs in zip(data, logprobs_list, strict=True):
        weights = torch.tensor(one.loss_fn_inputs["weights"].data, dtype=torch.float32)
        total_loss = total_loss - torch.dot(logprobs.float(), weights)
    return total_loss, {"cross_entropy": total_loss.item()}


def make_dpo_loss(ref_chosen, ref_rejected, beta=0.1):
    references = [torch.tensor(ref_chosen), torch.tensor(ref_rejected)]

    def loss_fn(data, logprobs_list):
        weights = [torch.tensor(one.loss_fn_inputs["weights"].data) for one in data]
        ratios = [
            torch.dot(logprobs - ref, own)
            for logprobs, ref, own in zip(logprobs_list, references, weights, strict=True)
        ]
        margin = ratios[0] - ratios[1]
        return -torch.nn.functional.logsigmoid(beta * margin), {"margin": margin.item()}

    return loss_fn


by_name = training_client.forward_backward([chosen], "cross_entropy", {"reduction": "sum"}).result().metrics
norms = [training_client.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]]
by_function = training_client.forward_backward_custom([chosen], cross_entropy_loss).result().metrics
norms.append(training_client.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"])
print(by_name["loss:sum"], by_function["loss:sum"], norms)

outputs = training_client.forward([chosen, rejected], "cross_entropy").result().loss_fn_outputs
dpo, margins = make_dpo_loss(*(one["logprobs"].data for one in outputs)), []
for _ in range(4):
    margins.append(training_client.forward_backward_custom([chosen, rejected], dpo).result().metrics["margin"])
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
print(margins)
