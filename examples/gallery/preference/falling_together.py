"""
After fine-tuning, DPO makes the chosen answers less likely; a little likelihood holds them
===========================================================================================

DPO sees the margin only, and a margin also widens when both answers fall and the rejected one falls faster. A model
that has been fine-tuned on such answers, as is usual before DPO, has little room to make them likelier, and much to
make them unlikelier. A mixture adds the likelihood of the chosen answers: one forward serves both parts, and each has
its own denominator.
"""

import matplotlib.pyplot as plt

import lossbook as lb

service = lb.ServiceClient()
pairs = [("1 + 1 =", " 2.", " 3."), ("Roses are", " red.", " rude."), ("The sky is", " blue.", " blunt.")]


def train(loss) -> dict[str, list[float]]:
    """Rewards, beta times the log-ratio to the reference, of both answers at each step."""
    training = service.create_lora_training_client(base_model="tiny", rank=8, seed=0)
    encode = training.get_tokenizer().encode
    bare = lb.datums_from_pairs(*([encode(text) for text in column] for column in zip(*pairs, strict=True)))
    for _ in range(20):
        training.forward_backward(bare, "cross_entropy", {"reduction": "token-mean"}).result()
        training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    outputs = (
        training.forward(bare, "cross_entropy").result().loss_fn_outputs
    )  # the reference is the model as it is now
    data = [
        lb.Datum(one.model_input, {**one.loss_fn_inputs, "ref_logprobs": output["logprobs"]})
        for one, output in zip(bare, outputs, strict=True)
    ]
    curves: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for _ in range(25):
        metrics = training.forward_backward(data, loss).result().metrics
        training.optim_step(lb.AdamParams(learning_rate=3e-3)).result()
        for key, curve in curves.items():
            curve.append(next(value for name, value in metrics.items() if name.endswith(f"{key}_reward")))
    return curves


dpo = lb.get_loss("dpo", beta=0.5)
losses = {"dpo": dpo, "dpo + 0.2 chosen_nll": dpo + 0.2 * lb.get_loss("chosen_nll")}
runs = {label: train(loss) for label, loss in losses.items()}
figure, panels = plt.subplots(1, 2, sharey=True)
for panel, (label, curves) in zip(panels, runs.items(), strict=True):
    for key, curve in curves.items():
        panel.plot(curve, label=key)
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set(title=label, xlabel="step")
panels[0].set_ylabel("reward: beta times the log-ratio (nats)")
panels[1].legend()
plt.show()

# %%
# The report of a run names this "Chosen answers become less likely too".

for label, curves in runs.items():
    print(f"{label:22} chosen {curves['chosen'][-1]:+.2f}   rejected {curves['rejected'][-1]:+.2f}")
plain, mixed = runs.values()
assert plain["chosen"][-1] < 0 < mixed["chosen"][-1]
assert all(curves["chosen"][-1] > curves["rejected"][-1] for curves in runs.values())
