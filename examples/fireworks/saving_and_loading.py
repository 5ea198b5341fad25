"""Page "Saving and Loading": weights for a sampler, the whole state for a resume, and an adapter of peft as a warm start.

`load_state_with_optimizer` and `load_state(..., optimizer=False)` are the page's two ways to restore. A checkpoint is a folder of
safetensors and JSON, so nothing has to be promoted: peft loads an adapter from it, `export_model` writes a whole model.
"""

import lossbook as tinker

service = tinker.ServiceClient(checkpoint_dir="checkpoints")
training_client = service.create_training_client("tiny", lora_rank=4, seed=0)
tokens = training_client.get_tokenizer().encode("To be, or not to be.")
datums = [tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens))]


def train(client, steps):
    losses = []
    for _ in range(steps):
        losses.append(client.forward_backward(datums, "cross_entropy").result().metrics["loss:sum"])
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return losses


def loss(client):
    return client.forward(datums, "cross_entropy").result().metrics["loss:sum"]


first = train(training_client, 3)
saved = training_client.save_weights_for_sampler("step-0003").result()
state = training_client.save_state("train_state_step_3").result()
sampler = service.create_sampling_client(model_path=saved.path)
print(sampler.sample(tokens[:5], 1, tinker.SamplingParams(max_tokens=8, seed=0)).result().sequences[0].tokens)

went_on = train(training_client, 2)
training_client.load_state_with_optimizer(state.path).result()
resumed = train(training_client, 2)

training_client.load_state(state.path, optimizer=False).result()
weights_only = train(training_client, 2)
print(went_on, resumed, weights_only)

adapter_client = service.create_training_client("tiny", lora_rank=4, seed=1)
adapter_client.load_adapter(saved.path).result()  # a LoRA client's sampler weights are an adapter folder too
started = loss(adapter_client)
