"""A forward pass without gradients: logprobs of given tokens, for a reference model or for evaluation.

`forward` changes nothing, so it may be called between `forward_backward` and `optim_step`. The reference client keeps the weights of
the moment when it was created.
"""

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

texts = ["one two three", "one two four and more"]
datums = []
for text in texts:
    tokens = tokenizer.encode(text)
    datums.append(tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens)))

reference_client = training_client.create_reference_client()
training_client.forward_backward(datums, "cross_entropy").result()
training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()

result = training_client.forward(datums, "cross_entropy").result()
logprobs = [result.loss_fn_outputs[i]["logprobs"].data for i in range(len(datums))]
reference = reference_client.forward(datums, "cross_entropy").result()
ref_logprobs = [reference.loss_fn_outputs[i]["logprobs"].data for i in range(len(datums))]

gains = [sum(new) - sum(old) for new, old in zip(logprobs, ref_logprobs, strict=True)]
for text, gain in zip(texts, gains, strict=True):
    print(f"{text!r} became more likely by {gain:.3f} nats")
