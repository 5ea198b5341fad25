"""
A reward for digits is gamed by repeating one of them, and the run's numbers say so
===================================================================================

A reward stands in for what is wanted. Wanted here are answers that are numbers, of many kinds; paid is the share of
characters that are digits. The policy finds the cheapest way to be paid. Nothing in the reward's own curve looks
wrong.
"""

import matplotlib.pyplot as plt

import lossbook as lb
from lossbook.cookbook.diagnose.diagnostics import diagnose
from lossbook.cookbook.diagnose.history import History
from lossbook.losses.advantages import group_advantages

GROUP, STEPS = 32, 30


def reward(answer: str) -> float:
    return sum(character.isdigit() for character in answer) / max(1, len(answer))


training = lb.ServiceClient().create_training_client(base_model="tiny")
tokenizer = training.get_tokenizer()
prompt = tokenizer.encode("A number: ")
rows, samples = [], []
for step in range(STEPS):
    sampler = training.save_weights_and_get_sampling_client()
    wanted = lb.SamplingParams(max_tokens=8, seed=step)
    sampled = sampler.sample(lb.ModelInput.from_ints(prompt), GROUP, wanted).result().sequences
    answers = [tokenizer.decode(one.tokens) for one in sampled]
    rewards = [reward(answer) for answer in answers]
    data = lb.datums_from_trajectories(
        lb.Trajectory(
            prompt_tokens=prompt, response_tokens=one.tokens, sampling_logprobs=one.logprobs, advantages=advantage
        )
        for one, advantage in zip(sampled, group_advantages(rewards).tolist(), strict=True)
    )
    output = training.forward_backward(data, "grpo", {"kl_coefficient": 0.0}).result()
    training.optim_step(lb.AdamParams(learning_rate=3e-3)).result()
    kinds = len({character for answer in answers for character in answer if character.isdigit()})
    entropy = output.metrics["entropy_estimate"]
    rows.append({"step": step, "reward": sum(rewards) / GROUP, "sampler_entropy": entropy, "kinds": kinds})
    samples.append(answers[0])

steps = range(STEPS)
figure, panels = plt.subplots(1, 3, figsize=(9, 3))
titles = {
    "reward": "reward: share of digits",
    "sampler_entropy": "entropy (nats per token)",
    "kinds": "kinds of digits in all answers",
}
for panel, (key, title) in zip(panels, titles.items(), strict=True):
    panel.plot([row[key] for row in rows])
    panel.set(title=title, xlabel="step", ylim=(0, None))
plt.show()

# %%
# What a report says of these numbers, and what reading a sample says at once:

diagnoses = diagnose(History(rows))
for diagnosis in diagnoses:
    print(f"{diagnosis.level}: {diagnosis.title} ({diagnosis.evidence})")
    print(f"   {diagnosis.advice}")
print("samples:", *(repr(samples[step]) for step in (0, STEPS // 2, STEPS - 1)))

assert rows[-1]["reward"] > 0.8 > rows[0]["reward"]
assert "Entropy collapses" in [diagnosis.title for diagnosis in diagnoses]
