"""Page "Training and Sampling": accumulate, step, save, sample from what was saved and look at the samples, every few steps.

Here a saved checkpoint is sampled from in the same process: there is no deployment to sync weights to. The reference client has the
base model's weights throughout.
"""

import torch

import lossbook as tinker

service = tinker.ServiceClient(checkpoint_dir="checkpoints")
training_client = service.create_training_client("tiny", lora_rank=8, seed=0)
reference_client = service.create_reference_client("tiny", lora_rank=8)
tokenizer = training_client.get_tokenizer()

prompt = tokenizer.encode("Say yes: ")
datums = [
    tinker.datum_from_tokens_weights(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))
    for answer in (tokenizer.encode("yes"), tokenizer.encode("yes yes"))
]


def objective(data, logprobs_list):
    weights = [torch.tensor(one.loss_fn_inputs["weights"].data) for one in data]
    loss = -sum(torch.dot(logprobs, own) for logprobs, own in zip(logprobs_list, weights, strict=True))
    return loss, {"loss": float(loss.item())}


def nats(client):
    """How likely the answers are, as the sum of their logprobs."""
    return -client.forward(datums, "cross_entropy", {"reduction": "sum"}).result().metrics["loss:sum"]


before, gains, scores = nats(reference_client), [], []
for step in range(17):
    for micro_batch in ([datums[0]], [datums[1]]):
        training_client.forward_backward_custom(micro_batch, objective).result()
    training_client.optim_step(tinker.AdamParams(learning_rate=3e-2)).result()
    if step % 8 == 0:
        gains.append(nats(training_client) - before)
        saved = training_client.save_weights_for_sampler(f"step_{step:05d}").result()
        sampler = service.create_sampling_client(model_path=saved.path)
        sampling_params = tinker.SamplingParams(max_tokens=3, seed=0)
        sampled = sampler.sample(tinker.ModelInput.from_ints(prompt), 16, sampling_params).result().sequences
        text = "".join(tokenizer.decode(one.tokens) for one in sampled)
        scores.append(sum(letter in "yes " for letter in text) / len(text))
        print({"step": step, "checkpoint": saved.path, "gain": gains[-1], "score": scores[-1]})

unmoved = nats(reference_client) == before
