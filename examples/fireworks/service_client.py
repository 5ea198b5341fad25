"""Page "FiretitanServiceClient & TrainingClient": what its calls take and give, one after the other, without a service.

A client of adapters or of all weights, the longest context, the likeliest tokens of a forward, references, and the normalization of
accumulated gradients at the step.
"""

import lossbook as tinker

service = tinker.ServiceClient(checkpoint_dir="checkpoints")
training_client = service.create_training_client(
    base_model="tiny", lora_rank=8, seed=0, lora_alpha=32, max_context_length=32
)
tokenizer = training_client.get_tokenizer()
texts = [tokenizer.encode(text) for text in ("one two three", "four")]
datums = [tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens)) for tokens in texts]

reference_client = service.create_reference_client(policy_client=training_client)
result = training_client.forward(datums, "cross_entropy", {"top_k": 5}).result()
top = result.loss_fn_outputs[0]
teacher = tinker.datum_from_topk(texts[0], top["top_k_indices"].to_torch(), top["top_k_logprobs"].to_torch().exp())
print("a teacher's datum:", teacher.loss_fn_inputs["target_tokens"].shape)

for micro_batch in ([datums[0]], [datums[1]]):
    training_client.forward_backward(micro_batch, "cross_entropy", {"reduction": "sum"}).result()
metrics = (
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-2), grad_accumulation_normalization="num_loss_tokens")
    .result()
    .metrics
)
moved = [
    client.forward(datums, "cross_entropy").result().metrics["nll"] for client in (reference_client, training_client)
]
print("normalizer:", metrics["normalizer"], "nats a token, before and after:", moved)

try:
    training_client.forward([tinker.datum_from_tokens_weights(range(40), [1.0] * 40)]).result()
except ValueError as error:
    message = str(error)
