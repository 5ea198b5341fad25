"""A reward model: a scalar head on a language model, trained on preference pairs (Bradley & Terry).

    lossbook train reward --data pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
    lossbook train reward --config examples/reward.toml

Data: as for `lossbook train dpo`: rows of chosen and rejected answers to a prompt, or a reasoning-gym task. A row may hold a
number `margin`: by how many nats the chosen answer should lead.

Result. `Scorer("runs/reward")` scores answers, in Python and as a reward of `lossbook train rl`. The folder `scorer/` is a
peft adapter that includes the head, for transformers' AutoModelForSequenceClassification with one label.

What to watch. `loss` begins at ln 2 = 0.693, where all scores are 0. `held_out_accuracy` is the share of pairs whose chosen
answer has the higher score, 1/2 at the start; it stops rising long before the training loss stops falling, and from then on
the model only memorizes the pairs. `held_out_margin` is the mean lead in nats. Scores have no fixed zero: only differences
on one prompt mean something, unless `--loss-config center_coefficient 0.01` keeps them around 0.
"""

from __future__ import annotations

from .dpo import SHOWN, load_examples
from .loop import Loop, begin, finish, introduce
from .preferences.examples import flat, needs_of
from .preferences.reward_models import HeldOutScores, export_scorer
from .run.batches import Batches
from .run.configs import adam_params, configured_loss
from .run.interrupts import restarted
from .run.names import REPORT
from .settings.preferences import RewardConfig
from .terminal import show


@restarted
def main(config: RewardConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = configured_loss(config)
    needs = needs_of(loss, values=True)  # raises for a loss without scores, before anything is loaded
    run, training = begin(config, value_head=True)
    examples, report, held_out_examples = load_examples(config, needs, training.get_tokenizer())
    batches = Batches(len(examples), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(examples), steps=total)
    show(report.render())
    run.write(REPORT, report.to_json())
    loss.check(flat(examples))
    held_out = HeldOutScores.begin(held_out_examples)
    with Loop(config, run, training, total) as loop:
        if held_out and loop.start == 0:
            loop.log_evaluation(0, held_out.measure(training))
        for step in loop:
            batch = flat(examples[i] for i in batches.at(step))
            output = training.forward_backward(batch, loss).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            loop.log(step, batch, output, update, shown=SHOWN, loss=loss)
            if held_out and loop.is_evaluated(step):
                loop.log_evaluation(step, held_out.measure(training))
    last = finish(run, training)
    print(export_scorer(run))
    return last


def check(config: RewardConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    needs_of(configured_loss(config), values=True)
