"""Page "Inference for RL Rollouts", its part on MoE Router Replay: train each token through the experts that sampled it.

A Fireworks deployment returns a text for each token (`include_routing_matrix`): expert indices [layers with experts, experts a
token], as bytes in base64. Here the experts are drawn, since lossbook's sampler does not record them. "" leaves a token to the
model, as the recipe does for prompts.
"""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import lossbook as tinker
from lossbook.datums.routing import encode_routing

service = tinker.ServiceClient()
tokenizer = service.create_training_client("tiny").get_tokenizer()
LAYERS, EXPERTS, ACTIVE = 2, 4, 2
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=260, num_hidden_layers=LAYERS, num_local_experts=EXPERTS, num_experts_per_tok=ACTIVE, **sizes
)
MixtralForCausalLM(config).save_pretrained("mixture")
tokenizer.save_pretrained("mixture")
training_client = service.create_training_client("mixture")

prompt, answer = tokenizer.encode("2 + 3 ="), tokenizer.encode(" 5, I think")
tokens = prompt + answer
experts = torch.stack([torch.randperm(EXPERTS)[:ACTIVE] for _ in range(LAYERS * len(answer))])
sampled = encode_routing(experts.reshape(len(answer), LAYERS, ACTIVE))
routing_matrices = [""] * (len(prompt) - 1) + sampled  # one for each token that the model reads, tokens[:-1]

inputs = {"target_tokens": tokens[1:], "weights": [0.0] * (len(prompt) - 1) + [1.0] * len(answer)}
free = tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)
replayed = tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1], routing_matrices=routing_matrices), inputs)

logprobs = [
    training_client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
    for datum in (free, replayed)
]
print("off by, in nats:", (logprobs[0] - logprobs[1]).abs().max().item())

losses = []
for _ in range(5):
    losses.append(training_client.forward_backward([replayed], "cross_entropy").result().metrics["loss:sum"])
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
print(losses)
