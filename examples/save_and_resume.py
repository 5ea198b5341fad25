"""Saving and resuming: on a CPU the resumed run equals the uninterrupted one, bit for bit.

`save_state` saves weights, optimizer, gradients accumulated since the last step, and the random state. `save_weights_for_sampler`
saves only the weights: enough to sample, or to start a new run with `optimizer=False`.
"""

import lossbook as tinker

service_client = tinker.ServiceClient(checkpoint_dir="checkpoints")
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()
tokens = tokenizer.encode("To be, or not to be.")
datums = [tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens))]


def train(client, steps):
    losses = []
    for _ in range(steps):
        losses.append(client.forward_backward(datums, "cross_entropy").result().metrics["loss:sum"])
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return losses


train(training_client, 3)
path = training_client.save_state("step-3", overwrite=True).result().path
uninterrupted = train(training_client, 3)

resumed_client = service_client.create_training_client_from_state_with_optimizer(path)
resumed = train(resumed_client, 3)

training_client.load_state(path).result()  # back to step 3 in the same client
rewound = train(training_client, 3)
print(uninterrupted, resumed, rewound)

weights_path = training_client.save_weights_for_sampler("final", overwrite=True).result().path
try:
    training_client.load_state(weights_path).result()
except RuntimeError as error:
    refusal = str(error)
    print(refusal)
