"""Three ways to build the same datum.

Builders take whole sequences and shift them by one; a Datum made by hand must already be shifted. A wrong length raises an error
that names the datum and the key; nothing is truncated silently.
"""

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompt, answer = tokenizer.encode("Hello,"), tokenizer.encode(" world.")
tokens = prompt + answer
weights = [0.0] * len(prompt) + [1.0] * len(answer)

by_tokens = tinker.datum_from_tokens_weights(tokens, weights)

model_input = tinker.ModelInput.empty().append(tinker.EncodedTextChunk(tokens=tokens[:-1])).append_int(tokens[-1])
by_model_input = tinker.datum_from_model_input_weights(model_input, weights, max_length=4096)

by_hand = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={
        "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
        "weights": tinker.TensorData(data=weights[1:], dtype="float32", shape=[len(tokens) - 1]),
    },
)

losses = [
    training_client.forward([datum], "cross_entropy").result().metrics["loss:sum"]
    for datum in (by_tokens, by_model_input, by_hand)
]
print(losses)

misaligned = tinker.Datum(by_hand.model_input, {"target_tokens": tokens[1:], "weights": weights})
try:
    training_client.forward_backward([misaligned], "cross_entropy").result()
except ValueError as error:
    message = str(error)
    print(message)
