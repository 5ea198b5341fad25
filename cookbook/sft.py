"""Supervised fine-tuning: LoRA on conversations, with any registered loss.

    lossbook train sft --data train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
    lossbook train sft --task family_relationships --loss my_losses:focal --loss-config gamma 2.0
    lossbook train sft --config examples/sft.toml --steps 500 --resume

Data: JSON Lines, Parquet or datasets:NAME:SPLIT, with rows of {"messages": [{"role": ..., "content": ...}, ...]},
{"prompt": ..., "completion": ...}, {"tokens": [...], "weights": [...]} or {"input_ids": [...], "labels": [...]}
(docs/data.md lists all forms); `lossbook data show FILE` shows which tokens are learned. Or a reasoning-gym task.

What to watch. For cross_entropy, `loss` is the mean negative log-likelihood of the answers' tokens in nats. At step 0 it
is 1 to 3 for a model that knows the language (ln V, which is 11 for 50,000 tokens, means that it knows nothing, or that
the chat template is wrong); it falls fast for some tens of steps, then slowly. `held_out_nll` must fall with it: when it
turns and rises, the model memorizes the data, so stop there or train for fewer epochs. `grad_norm` is largest in the
first steps and should settle; if it grows with the loss, lower the learning rate. `label_tokens_lost_frac` in the data
report is the share of label tokens lost to truncation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..datums.errors import LossContractError
from ..datums.files.report import DataReport, build_datums
from ..datums.files.rows import sequences_from_row
from ..datums.files.sources import read_rows
from ..datums.types import Datum
from ..losses.loss.loss import Loss
from .loop import Loop, begin, finish, introduce
from .run.batches import Batches
from .run.configs import adam_params, configured_loss
from .run.interrupts import restarted
from .run.names import REPORT
from .settings.sft import SFTConfig
from .tasks.held_out import HeldOut, warn_of_repeated_rows
from .tasks.reasoning_gym_tasks import Task, question_datum
from .terminal import show


@restarted
def main(config: SFTConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = single_sequence_loss(config)  # raises for an unknown id or setting, before anything is loaded
    run, training = begin(config)
    datums, report, held_out = load_data(config, training.get_tokenizer())
    batches = Batches(len(datums), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(datums), steps=total)
    show(report.render())
    run.write(REPORT, report.to_json())
    loss.check(datums)
    with Loop(config, run, training, total) as loop:
        if loop.start == 0:
            loop.log_evaluation(0, held_out.measure(training))
        for step in loop:
            batch = [datums[i] for i in batches.at(step)]
            output = training.forward_backward(batch, loss).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            loop.log(step, batch, output, update, loss=loss)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, held_out.measure(training))
    return finish(run, training)


def check(config: SFTConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    single_sequence_loss(config)


def single_sequence_loss(config: SFTConfig) -> Loss:
    """The configured loss. Raises LossContractError for a loss that compares pairs."""
    loss = configured_loss(config)
    if loss.couples == "pair":
        raise LossContractError(
            f"{loss.name} compares pairs, but this recipe trains on single sequences: use `lossbook train dpo`"
        )
    return loss


def load_data(config: SFTConfig, tokenizer: Any) -> tuple[list[Datum], DataReport, HeldOut]:
    """Datums to train on, the report about their rows, and the held-out data."""
    options: dict[str, Any] = {"max_length": config.max_length, "truncation": config.truncation}
    if config.task is not None:
        task = Task(config.task, config.task_config, seed=config.seed)
        questions = task.held_out(config.held_out)
        trained_on = task.training(config.task_size, questions)
        task.check_references([*trained_on, *questions])
        make = partial(question_datum, tokenizer=tokenizer, **options)
        datums, report = build_datums(trained_on, make)
        return datums, report, HeldOut([question_datum(question, tokenizer) for question in questions], task, questions)
    make = partial(sequences_from_row, tokenizer=tokenizer, train_on=config.train_on, **options)
    held_out, held_out_report = (
        build_datums(read_rows(config.eval_data), make) if config.eval_data else ([], DataReport())
    )
    datums, report = build_datums(read_rows(config.data or ""), make)
    warn_of_repeated_rows(held_out_report, report)
    return datums, report, HeldOut(held_out)
