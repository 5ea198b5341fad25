"""GRPO with a KL term as a custom loss: sample a group of answers, score them, and close over Python lists.

Advantages are rewards minus their group's mean. The KL estimate is logprob - reference logprob, summed over the sampled tokens; for a
single sample it may be negative.
"""

import torch

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()


def make_grpo_loss(advantages, ref_logprobs, kl_beta=0.001):
    def grpo(data, logprobs_list):
        losses, kl_sums = [], []
        for i, logprobs in enumerate(logprobs_list):
            weights = torch.tensor(data[i].loss_fn_inputs["weights"].data)
            kl = logprobs - torch.tensor(ref_logprobs[i])
            losses.append((weights * (-advantages[i] * logprobs + kl_beta * kl)).sum())
            kl_sums.append(torch.dot(weights, kl.detach()))
        return torch.stack(losses).mean(), {"kl": torch.stack(kl_sums).mean().item()}

    return grpo


prompt = tokenizer.encode("Count down from nine: ")
sampling_client = training_client.save_weights_and_get_sampling_client()
sampling_params = tinker.SamplingParams(max_tokens=8, seed=0)
sampled = sampling_client.sample(tinker.ModelInput.from_ints(prompt), num_samples=4, sampling_params=sampling_params)

answers = [sequence.tokens for sequence in sampled.result().sequences]
rewards = [float(sum(token < 128 for token in tokens)) for tokens in answers]  # the reward counts ASCII bytes
advantages = [reward - sum(rewards) / len(rewards) for reward in rewards]
datums = [
    tinker.datum_from_tokens_weights(prompt + tokens, [0.0] * len(prompt) + [1.0] * len(tokens)) for tokens in answers
]

reference = training_client.forward(datums, "cross_entropy").result()
ref_logprobs = [reference.loss_fn_outputs[i]["logprobs"].data for i in range(len(datums))]

kls = []
for step in range(3):
    result = training_client.forward_backward_custom(datums, make_grpo_loss(advantages, ref_logprobs)).result()
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    kls.append(result.metrics["kl"])
    print(step, result.metrics["loss:sum"], kls[-1])
