"""Several forward_backward calls, then one optim_step: gradients add up and are divided once, at the step.

Divided by the number of all loss tokens, the sums of the calls give the mean over tokens, however the data are split into calls. A
loss that is already a mean is refused, because it would be divided twice.
"""

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

datums = []
for text in ("a short one", "one that is longer", "x", "and the last one of the four"):
    tokens = tokenizer.encode(f"{text}.")
    datums.append(tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens)))

normalizers = []
for step in range(3):
    calls = [training_client.forward_backward([datum], "cross_entropy") for datum in datums]
    step_metrics = (
        training_client.optim_step(
            tinker.AdamParams(learning_rate=1e-2, grad_clip_norm=1.0),
            grad_accumulation_normalization="num_loss_tokens",
        )
        .result()
        .metrics
    )
    total = sum(call.result().metrics["loss:sum"] for call in calls)
    normalizers.append(step_metrics["normalizer"])
    print(step, total / step_metrics["normalizer"], step_metrics["grad_norm"])

training_client.forward_backward(datums, "cross_entropy", {"reduction": "token-mean"}).result()
try:
    training_client.optim_step(tinker.AdamParams(), grad_accumulation_normalization="num_loss_tokens").result()
except ValueError as error:
    refusal = str(error)
    print(refusal)
training_client.discard_gradients().result()
