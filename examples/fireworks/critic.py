"""The cookbook's PPO recipe, its critic: a projection head of one number per position, trained on returns and read between updates.

`projection_head_dim` adds the head, `output="projection"` hands a function its numbers [tokens, 1] for each datum, and
`forward_projection` reads them without gradients.
"""

import torch

import lossbook as tinker

service = tinker.ServiceClient()
critic = service.create_training_client("tiny", projection_head_dim=1)
tokenizer = critic.get_tokenizer()

texts = ["the answer is right", "the answer is wrong"]
returns = [1.0, -1.0]
datums = [tinker.Datum(tinker.ModelInput.from_ints(tokenizer.encode(text))) for text in texts]


def value_loss(data, projections):
    errors = [(values[:, 0] - target) ** 2 for values, target in zip(projections, returns, strict=True)]
    return torch.cat(errors).mean(), {"explained": 1 - torch.cat(errors).mean().item()}


def values():
    outputs = critic.forward_projection(datums).result().loss_fn_outputs
    return [output["projection"].to_torch()[-1, 0].item() for output in outputs]


start, losses = values(), []
for _ in range(12):
    result = critic.forward_backward_custom(datums, value_loss, output="projection").result()
    critic.optim_step(tinker.AdamParams(learning_rate=3e-3)).result()
    losses.append(result.metrics["loss:sum"])
end = values()
print(start, end, losses[-1])
