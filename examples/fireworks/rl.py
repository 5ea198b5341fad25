"""Page "Cookbook: Reinforcement Learning": GRPO as a client's loss, anchored on the policy's own forward, with a KL to the base model.

As the recipe does it: sample groups, score them, snapshot the old policy's logprobs by one forward, and hand that forward to the
loss's call. It anchors the ratios; at the first pass over it they are 1.
"""

import torch

import lossbook as tinker

service = tinker.ServiceClient()
training_client = service.create_training_client("tiny", lora_rank=8, seed=0)
reference_client = service.create_reference_client(policy_client=training_client)
tokenizer = training_client.get_tokenizer()
prompt = tokenizer.encode("Count down from nine: ")


def make_grpo_loss(advantages, ref_logprobs, old_policy_logprobs, kl_beta=0.001, eps_clip=0.2):
    def grpo(data, logprobs_list):
        total, ratios = torch.zeros(()), []
        for i, logprobs in enumerate(logprobs_list):
            weights = torch.tensor(data[i].loss_fn_inputs["weights"].data)
            ratio = (logprobs - old_policy_logprobs[i]).exp()
            surrogate = torch.minimum(ratio * advantages[i], ratio.clamp(1 - eps_clip, 1 + eps_clip) * advantages[i])
            difference = ref_logprobs[i] - logprobs
            kl = difference.exp() - difference - 1  # k3: unbiased, never negative
            total = total + torch.dot(weights, kl_beta * kl - surrogate)
            ratios.append((weights * ratio.detach()).sum() / weights.sum())
        return total, {"ppo_ratio_mean": torch.stack(ratios).mean().item()}

    return grpo


def logprobs_of(result):
    return [one["logprobs"].to_torch() for one in result.loss_fn_outputs]


ratios, mean_rewards = [], []
for step in range(4):
    sampler = training_client.save_weights_and_get_sampling_client()
    sampled = sampler.sample(prompt, 16, tinker.SamplingParams(max_tokens=8, seed=step)).result().sequences
    rewards = [float(sum(token < 128 for token in one.tokens)) for one in sampled]  # counts ASCII bytes
    mean_rewards.append(sum(rewards) / len(rewards))
    datums = [
        tinker.datum_from_tokens_weights(prompt + one.tokens, [0.0] * len(prompt) + [1.0] * len(one.tokens))
        for one in sampled
    ]
    old_policy_result = training_client.forward(datums, "cross_entropy").result()
    ref_logprobs = logprobs_of(reference_client.forward(datums, "cross_entropy").result())
    loss = make_grpo_loss([r - mean_rewards[-1] for r in rewards], ref_logprobs, logprobs_of(old_policy_result))
    result = training_client.forward_backward_custom(datums, loss, precomputed_forward=old_policy_result).result()
    training_client.optim_step(
        tinker.AdamParams(learning_rate=1e-2), grad_accumulation_normalization="num_loss_tokens"
    ).result()
    ratios.append(result.metrics["ppo_ratio_mean"])
    print(step, mean_rewards[-1], ratios[-1])
