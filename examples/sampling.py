"""Sampling with logprobs, and logprobs of given tokens. Later training does not change the client's weights."""

import math

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompt = tinker.ModelInput.from_ints(tokenizer.encode("Once upon a time"))
sampling_client = training_client.save_weights_and_get_sampling_client()
sampling_params = tinker.SamplingParams(max_tokens=12, temperature=1.0, top_p=1.0, seed=0)

sampled = sampling_client.sample(prompt, num_samples=3, sampling_params=sampling_params).result()
for sequence in sampled.sequences:
    print(repr(tokenizer.decode(sequence.tokens)), sequence.stop_reason, sum(sequence.logprobs))

again = sampling_client.sample(prompt, num_samples=3, sampling_params=sampling_params).result()
print("the same seed gives the same samples:", again.sequences == sampled.sequences)

first = sampled.sequences[0]
given = sampling_client.compute_logprobs(prompt.append(tinker.EncodedTextChunk(tokens=first.tokens))).result()
differences = [abs(a - b) for a, b in zip(given[-len(first.tokens) :], first.logprobs, strict=True)]
print("the first token has no logprob, because no token precedes it:", given[0])
print("perplexity of the first sample:", math.exp(-sum(first.logprobs) / len(first.logprobs)))
