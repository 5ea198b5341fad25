"""A loss registered under a name: one formula over packed tokens. Weights, division and settings are handled by lossbook.

Parameters name the inputs (`logprobs` from the model, the others from the datums), keyword-only arguments are settings. The function
never gets a token of weight 0, and the loss does not depend on the micro-batches.
"""

import lossbook as tinker
from lossbook import register_loss, stats
from lossbook.losses import Positive, safe_ratio


@register_loss("capped_ratio", per="token", reduction="token-mean", source="this example")
def capped_ratio(logprobs, sampling_logprobs, advantages, *, cap: Positive = 2.0):
    """-A min(r, cap), where r = exp(logprobs - sampling_logprobs).

    logprobs, sampling_logprobs   [T] nats;   advantages   [T] unitless;   returns   [T] unitless
    """
    ratio = safe_ratio(logprobs, sampling_logprobs)
    return -advantages * ratio.clamp(max=cap), {"capped_fraction": stats.mean(ratio > cap)}


service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny", rank=8, seed=0)
tokenizer = training_client.get_tokenizer()

prompt = tokenizer.encode("Say something: ")
sampling_client = training_client.save_weights_and_get_sampling_client()
sampled = sampling_client.sample(prompt, num_samples=4, sampling_params=tinker.SamplingParams(max_tokens=6, seed=0))
datums = tinker.datums_from_trajectories(
    [
        tinker.Trajectory(
            prompt_tokens=prompt,
            response_tokens=sequence.tokens,
            sampling_logprobs=sequence.logprobs,
            advantages=1.0 if number % 2 else -1.0,
        )
        for number, sequence in enumerate(sampled.result().sequences)
    ]
)

by_name = training_client.forward_backward(datums, "capped_ratio", {"cap": 1.5}).result().metrics
by_function = training_client.forward_backward_custom(datums, capped_ratio).result().metrics
training_client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
print(by_name["loss:sum"], by_function["loss:sum"], by_name["capped_fraction"])
print(tinker.get_loss("capped_ratio", cap=1.5))
print(tinker.describe_loss("capped_ratio"))
