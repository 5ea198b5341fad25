"""Distillation: a student learns a teacher's distribution, on given answers or on its own.

    lossbook train distill --teacher runs/sft --task letter_counting                      the teacher's top K, given answers
    lossbook train distill --teacher runs/sft --task letter_counting \\
        --mode on_policy --loss sampled_reverse_kl                                         the student's own answers
    lossbook train distill --teacher runs/sft --task letter_counting \\
        --mode on_policy --loss ppo --advantage-cap 5                                      the same under a policy loss
    lossbook train distill --data questions.jsonl --mode on_policy --loss sampled_reverse_kl \\
        --teacher-system "The right answer is {answer}."                                   its own teacher, with a hint
    lossbook train distill --config examples/distill.toml --steps 500 --resume

Data: as for `lossbook train sft`; rows of prompt and completion may have a "teacher_prompt", which the teacher reads instead,
and on policy a prompt needs no completion. The teacher is a model with the same tokenizer, a run's folder, a checkpoint, or
`self`: the student before the first step, which then needs a hint.

What to watch. `held_out_forward_kl` and `held_out_reverse_kl` are KL(teacher || student) and KL(student || teacher) in nats per
token of held-out answers: 0 when both distributions are equal, so both must fall. Top-K training lowers the forward one most,
sampled training the reverse one, and more noisily: it learns from one token per position, so sample more answers per step.
`teacher_mass` is the teacher's probability of the candidates: below 0.9 choose a larger --top-k. On policy, `teacher_kl` is the
reverse KL on the student's answers; if it falls while `answer_length` falls too, the student has found a short answer that the
teacher likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..datums.errors import ConfigError
from ..datums.files.report import DataReport
from ..datums.files.sources import read_rows
from .distillation.examples import DistillationExample, build_examples, question_row
from .distillation.teaching import Teaching, candidates_wanted
from .loop import Loop, begin, finish, introduce
from .run.batches import Batches
from .run.configs import adam_params, configured_loss
from .run.interrupts import restarted
from .run.names import REPORT
from .settings.choices import SELF
from .settings.distill import DistillConfig
from .tasks.held_out import HeldOut, warn_of_repeated_rows
from .tasks.reasoning_gym_tasks import Task
from .terminal import show


@restarted
def main(config: DistillConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = configured_loss(config)  # raises for an unknown id or setting, before anything is loaded
    candidates_wanted(config, loss)
    run, training = begin(config)
    teaching = Teaching.of(config, loss, training)
    examples, report, held_out_examples, held_out = load_examples(
        config, training.get_tokenizer(), teaching.teacher_tokenizer
    )
    batches = Batches(len(examples), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(examples), steps=total)
    show(report.render())
    run.write(REPORT, report.to_json())
    divergence = teaching.held_out(held_out_examples)
    with Loop(config, run, training, total) as loop:
        if loop.start == 0:
            loop.log_evaluation(0, {**divergence.measure(training), **held_out.measure(training)})
        for step in loop:
            batch, more = teaching.batch([examples[i] for i in batches.at(step)], step)
            output = teaching.forward_backward(batch).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            length = output.metrics["response_tokens"] / len(batch)
            loop.log(step, batch, output, update, {"answer_length": length, **more}, loss=teaching.loss)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, {**divergence.measure(training), **held_out.measure(training)})
    return finish(run, training)


def check(config: DistillConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    candidates_wanted(config, configured_loss(config))


def load_examples(
    config: DistillConfig, tokenizer: Any, teacher_tokenizer: Any = None
) -> tuple[list[DistillationExample], DataReport, list[DistillationExample], HeldOut]:
    """Examples to train on, the report about their rows, held-out examples, and questions whose answers are scored."""
    task, questions = None, []
    rows: Iterable[Mapping[str, Any]]
    eval_rows: Iterable[Mapping[str, Any]] = ()
    if config.task is not None:
        task = Task(config.task, config.task_config, seed=config.seed)
        questions = task.held_out(config.held_out)
        trained_on = task.training(config.task_size, questions)
        if config.mode == "off_policy":
            task.check_references([*trained_on, *questions])
        rows = map(question_row, trained_on)
        eval_rows = [question_row(question) for question in questions if question.answer is not None]
    else:
        rows = read_rows(config.data or "")
        eval_rows = read_rows(config.eval_data) if config.eval_data else ()
    options: dict[str, Any] = {
        "teacher_system": config.teacher_system,
        "max_length": config.max_length,
        "truncation": config.truncation,
        "teacher_tokenizer": teacher_tokenizer,
    }
    examples, report = build_examples(rows, tokenizer, answers_needed=config.mode == "off_policy", **options)
    held_out, held_out_report = build_examples(eval_rows, tokenizer, **options) if eval_rows else ([], DataReport())
    warn_of_repeated_rows(held_out_report, report)
    if config.teacher == SELF and all(example.is_alike for example in examples):
        raise ConfigError(
            "the teacher is the student itself and reads the same prompts, so there is nothing to learn: give the teacher a "
            "hint (--teacher-system, or rows with a 'teacher_prompt'), or choose another --teacher"
        )
    return examples, report, held_out, HeldOut(task=task, questions=questions, max_tokens=config.max_tokens)
