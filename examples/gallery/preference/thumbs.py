"""
KTO learns from thumbs up and down, and unequal counts need weights
===================================================================

Pairs are rare, single thumbs are common. KTO takes answers one by one, with a label each. Here a tiny model gets
eight answers to one prompt, one good and seven bad, which begin alike: the two sides pull alike only if the good one
weighs seven times as much.
"""

import matplotlib.pyplot as plt

import lossbook as lb

service = lb.ServiceClient()
prompt = "The sky is"
answers = {" blue.": 1} | dict.fromkeys((" blunt.", " black.", " blank.", " glue.", " clue.", " bluer.", " blur."), 0)


def rewards(desirable_weight: float) -> dict[str, list[float]]:
    """beta times the log-ratio to the reference, of good and of bad answers, at each step."""
    training = service.create_lora_training_client(base_model="tiny", rank=8, seed=0)
    encode, bare = training.get_tokenizer().encode, []
    for text in answers:
        asked, answered = encode(prompt), encode(text)
        bare.append(lb.datum_from_tokens_weights(asked + answered, [0.0] * len(asked) + [1.0] * len(answered)))
    outputs = training.create_reference_client().forward(bare, "cross_entropy").result().loss_fn_outputs
    data = [
        lb.Datum(one.model_input, {**one.loss_fn_inputs, "ref_logprobs": output["logprobs"], "label": label})
        for one, output, label in zip(bare, outputs, answers.values(), strict=True)
    ]
    curves: dict[str, list[float]] = {"desirable": [], "undesirable": []}
    for _ in range(12):
        metrics = training.forward_backward(data, "kto", {"desirable_weight": desirable_weight}).result().metrics
        training.optim_step(lb.AdamParams(learning_rate=3e-3)).result()
        for key, curve in curves.items():
            curve.append(metrics[f"{key}_reward"])
    return curves


runs = {weight: rewards(weight) for weight in (1.0, 7.0)}
figure, panels = plt.subplots(1, 2, sharey=True)
for panel, (weight, curves) in zip(panels, runs.items(), strict=True):
    for key, curve in curves.items():
        panel.plot(curve, label=key)
    panel.set(title=f"desirable_weight {weight:g}", xlabel="step")
panels[0].set_ylabel("reward: beta times the log-ratio (nats)")
panels[1].legend()
plt.show()

# %%
# With equal weights seven thumbs down outvote one thumb up: everything becomes less likely, the good answer too.
# Weighed, it rises.

for weight, curves in runs.items():
    print(f"weight {weight:g}: good {curves['desirable'][-1]:+.2f}, bad {curves['undesirable'][-1]:+.2f}")
assert runs[1.0]["desirable"][-1] < 0 < runs[7.0]["desirable"][-1]
assert all(curves["undesirable"][-1] < 0 for curves in runs.values())
