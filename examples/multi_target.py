"""Several weighted targets per position: soft labels, as in distillation from a teacher's top K.

`target_tokens` and `weights` are [N, K], row-major: the K candidates of position 0, then those of position 1. The loss of a
position is -Σ_k weight_k logprob_k; the returned `logprobs` have the same shape.
"""

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_training_client(base_model="tiny")
tokenizer = training_client.get_tokenizer()

prompt = tokenizer.encode("The sky is blu")  # next: "e" or "-"
N, K = len(prompt), 2
candidates = tokenizer.encode("e-")
target_tokens = [0] * (N - 1) * K + candidates
weights = [0.0] * (N - 1) * K + [0.75, 0.25]

datum = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(prompt),
    loss_fn_inputs={
        "target_tokens": tinker.TensorData(data=target_tokens, dtype="int64", shape=[N, K]),
        "weights": tinker.TensorData(data=weights, dtype="float32", shape=[N, K]),
    },
)
for _ in range(40):
    training_client.forward_backward([datum], "cross_entropy").result()
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()

output = training_client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
shape = output.shape
probabilities = output.to_torch()[-1].exp().tolist()
print(shape, dict(zip(tokenizer.convert_ids_to_tokens(candidates), probabilities, strict=True)))
