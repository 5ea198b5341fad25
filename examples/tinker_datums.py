"""Objects of the Tinker SDK are accepted: datums, AdamParams, SamplingParams, tensors.

Needs `pip install tinker`, but no account and no network: only its data types are used.
"""

import tinker

import lossbook

training_client = lossbook.ServiceClient().create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()
tokens = tokenizer.encode("The same data, either way.")
ones = [1.0] * (len(tokens) - 1)

theirs = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={
        "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(ones)]),
        "weights": tinker.TensorData(data=ones, dtype="float32", shape=[len(ones)]),
    },
)
ours = lossbook.Datum(
    model_input=lossbook.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={"target_tokens": tokens[1:], "weights": ones},
)

losses = [training_client.forward([datum], "cross_entropy").result().metrics["loss:sum"] for datum in (theirs, ours)]
print(losses)

training_client.forward_backward([theirs], "cross_entropy").result()
training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
sampling_client = training_client.save_weights_and_get_sampling_client()
sampled = sampling_client.sample(
    theirs.model_input, sampling_params=tinker.SamplingParams(max_tokens=4, seed=0)
).result()
print(sampled.sequences[0].tokens)
