"""Preference training: LoRA on chosen and rejected answers, with any preference loss.

    lossbook train dpo --data pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --start-from runs/sft
    lossbook train dpo --config examples/dpo.toml --loss simpo
    lossbook train dpo --data pairs.jsonl --loss my_losses:my_dpo

Data: JSON Lines of {"prompt": ..., "chosen": ..., "rejected": ...}, texts or lists of messages; for losses over labels, such
as kto, also {"prompt": ..., "completion": ..., "label": true}. Or a reasoning-gym task, with its right answers as chosen and
similar wrong ones as rejected.

The loss's inputs decide how the data are laid out. The datums of a pair stay in one batch. A loss over labels gets a pair as
two labelled answers, and, if it estimates a KL from them, answers to other prompts. A loss that reads `ref_logprobs` gets those
of the weights at the start, computed once and cached in `references` (another run with the same weights and data reuses them).

What to watch. `held_out_accuracy` must rise; it is measured in the same way for every loss (cookbook/preferences/evaluation.py).
DPO's loss begins at ln 2 = 0.693: another value means that the reference is not the model that is trained.
`held_out_chosen_change` and `held_out_rejected_change` say by how many nats the answers became likelier. When both fall, the
model only learns what not to say, and soon says something else: add a likelihood term (orpo, cpo), raise beta or lower the
learning rate. `held_out_kl` is the distance from the start; above about 1 nat per token, read what the model writes.
"""

from __future__ import annotations

from typing import Any

from ..datums.files.report import DataReport
from ..datums.files.sources import read_rows
from .loop import Loop, begin, finish, introduce
from .preferences.evaluation import HeldOutPreferences
from .preferences.examples import Needs, PreferenceExample, build_examples, flat, needs_of, regrouped, with_mismatched
from .preferences.from_tasks import preference_rows
from .preferences.references import References
from .run.batches import Batches
from .run.configs import adam_params, configured_loss
from .run.interrupts import restarted
from .run.names import REPORT
from .settings.preferences import DPOConfig, PreferenceConfig
from .tasks.held_out import warn_of_repeated_rows
from .tasks.reasoning_gym_tasks import Task
from .terminal import show

#: The metrics in the progress display.
SHOWN = ("loss", "accuracy", "margin", "grad_norm")


@restarted
def main(config: DPOConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = configured_loss(config)
    needs = needs_of(loss)  # raises for a loss that this data cannot serve, before anything is loaded
    run, training = begin(config)
    examples, report, held_out_examples = load_examples(config, needs, training.get_tokenizer())
    batches = Batches(len(examples), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(examples), steps=total)
    show(report.render())
    run.write(REPORT, report.to_json())
    references = References(training, config.references or run.path / "references")
    if needs.mismatched:
        examples = with_mismatched(examples, config.max_length)
    if needs.reference:
        examples = regrouped(references.attached(flat(examples)), examples)
    held_out = HeldOutPreferences.begin(held_out_examples, references)
    del references  # frees its copy of the weights at the start
    loss.check(flat(examples))
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
    return finish(run, training)


def check(config: DPOConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    needs_of(configured_loss(config))


def load_examples(
    config: PreferenceConfig, needs: Needs, tokenizer: Any
) -> tuple[list[PreferenceExample], DataReport, list[PreferenceExample]]:
    """Examples to train on, the report about their rows, and held-out examples."""
    options: dict[str, Any] = {"max_length": config.max_length, "truncation": config.truncation}
    rows: Any
    held_out_rows: Any
    if config.task is not None:
        task = Task(config.task, config.task_config, seed=config.seed)
        questions = task.held_out(config.held_out) if config.held_out else []
        held_out_rows = preference_rows(task, questions, config.wrong_answer, config.seed)
        trained_on = task.training(config.task_size, questions)
        rows = preference_rows(task, trained_on, config.wrong_answer, config.seed + 1)
    else:
        rows = read_rows(config.data or "")
        held_out_rows = read_rows(config.eval_data) if config.eval_data else []
    examples, report = build_examples(rows, needs, tokenizer, **options)
    held_out, held_out_report = (
        build_examples(held_out_rows, needs, tokenizer, **options) if held_out_rows else ([], DataReport())
    )
    warn_of_repeated_rows(held_out_report, report)
    return examples, report, held_out
