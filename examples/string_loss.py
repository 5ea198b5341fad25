"""A loss by its name, in the shortest training loop.

`loss:sum` is the loss whose gradient was added, `response_tokens` the number of positions with a nonzero weight. Both calls of a step
are submitted before either result is awaited; they run in this order.
"""

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompt = tokenizer.encode("The capital of France is")
answer = tokenizer.encode(" Paris.")
weights = [0.0] * len(prompt) + [1.0] * len(answer)  # the prompt is read, the answer is learned
datums = [tinker.datum_from_tokens_weights(prompt + answer, weights)]

nats_per_token = []
for step in range(10):
    forward_backward = training_client.forward_backward(datums, "cross_entropy")
    optim_step = training_client.optim_step(tinker.AdamParams(learning_rate=1e-2))
    metrics = forward_backward.result().metrics
    nats_per_token.append(metrics["loss:sum"] / metrics["response_tokens"])
    print(step, nats_per_token[-1], optim_step.result().metrics["grad_norm"])
