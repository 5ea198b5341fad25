"""A mixture of two losses: both share one forward pass, and each is divided by its own denominator.

The names of metrics begin with the part's name. Here a little cross-entropy keeps the chosen answers of a preference loss likely.
"""

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompts = [tokenizer.encode(text) for text in ("1 + 1 =", "Roses are")]
chosen = [tokenizer.encode(text) for text in (" 2", " red")]
rejected = [tokenizer.encode(text) for text in (" 11", " cheap")]
bare = tinker.datums_from_pairs(prompts, chosen, rejected)

outputs = training_client.create_reference_client().forward(bare, "cross_entropy").result().loss_fn_outputs
datums = [
    tinker.Datum(datum.model_input, {**datum.loss_fn_inputs, "ref_logprobs": output["logprobs"]})
    for datum, output in zip(bare, outputs, strict=True)
]

loss = tinker.get_loss("dpo", beta=0.5) + 0.1 * tinker.get_loss("cross_entropy", reduction="token-mean")
print(loss)

margins = []
for step in range(5):
    metrics = training_client.forward_backward(datums, loss).result().metrics
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    margins.append(metrics["dpo/margin"])
    print(step, metrics["loss:sum"], margins[-1], metrics["cross_entropy/nll"])
