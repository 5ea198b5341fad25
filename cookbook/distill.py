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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..datums.errors import ConfigError, LossContractError
from ..datums.files.report import DataReport
from ..datums.files.sources import read_rows
from ..datums.types import Datum
from ..losses.loss.loss import Loss
from ..trainer import ReferenceClient, TrainingClient
from .distillation.divergence import HeldOutDivergence
from .distillation.examples import DistillationExample, build_examples, question_row, sample_answers
from .distillation.teachers import (
    open_teacher,
    shared_vocabulary,
    with_candidates,
    with_teacher_advantages,
    with_teacher_logprobs,
)
from .loop import Loop, begin, finish, introduce
from .run.batches import Batches, seed_of
from .run.configs import adam_params, configured_loss, torch_dtype
from .run.interrupts import restarted
from .run.names import REPORT
from .settings.choices import SELF
from .settings.distill import DistillConfig
from .tasks.held_out import HeldOut, warn_of_repeated_rows
from .tasks.reasoning_gym_tasks import Task
from .terminal import show

#: Candidates per position where a loss compares candidates and --top-k is not set.
DEFAULT_TOP_K = 20


@restarted
def main(config: DistillConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = configured_loss(config)  # raises for an unknown id or setting, before anything is loaded
    top_k, is_policy = candidates_wanted(config, loss), learns_by_advantages(loss)
    run, training = begin(config)
    teacher = open_teacher(
        config.teacher,
        training,
        device=config.device,
        dtype=torch_dtype(config.dtype),
        tokens_per_micro_batch=config.tokens_per_micro_batch,
    )
    vocabulary = shared_vocabulary(training, teacher, samples=config.mode == "on_policy")
    examples, report, held_out_examples, held_out = load_examples(config, training.get_tokenizer())
    batches = Batches(len(examples), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(examples), steps=total)
    show(report.render())
    run.write(REPORT, report.to_json())
    divergence = HeldOutDivergence.of(teacher, held_out_examples, min(config.eval_top_k, vocabulary), vocabulary)
    with Loop(config, run, training, total) as loop:
        if loop.start == 0:
            loop.log_evaluation(0, {**divergence.measure(training), **held_out.measure(training)})
        for step in loop:
            chosen = [examples[i] for i in batches.at(step)]
            batch = make_batch(config, chosen, training, teacher, top_k, vocabulary, step)
            batch, policy = with_teacher_advantages(batch, config.advantage_cap) if is_policy else (batch, {})
            output = training.forward_backward(batch, loss).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            length = output.metrics["response_tokens"] / len(batch)
            loop.log(step, batch, output, update, {"answer_length": length, **policy}, loss=loss)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, {**divergence.measure(training), **held_out.measure(training)})
    return finish(run, training)


def check(config: DistillConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    candidates_wanted(config, configured_loss(config))


def make_batch(
    config: DistillConfig,
    examples: Sequence[DistillationExample],
    training: TrainingClient,
    teacher: ReferenceClient,
    top_k: int,
    vocabulary: int,
    step: int,
) -> list[Datum]:
    """What a step trains on: given or sampled answers, with what the teacher says of their tokens."""
    students, teachers = [one.student for one in examples], [one.teacher for one in examples]
    if config.mode == "on_policy":
        sampler, seed = training.save_weights_and_get_sampling_client(), seed_of(config.seed, step)
        students, teachers = sample_answers(
            sampler, examples, samples=config.samples, max_tokens=config.max_tokens, seed=seed
        )
    if top_k:
        return with_candidates(teacher, students, teachers, min(top_k, vocabulary), vocabulary)
    return with_teacher_logprobs(teacher, students, teachers)


def candidates_wanted(config: DistillConfig, loss: Loss) -> int:
    """How many of the teacher's candidates the loss compares; 0: it reads the teacher's logprob of each target token.

    Raises LossContractError for a loss that reads no teacher, one that needs sampled answers off policy, one over
    single tokens when --top-k is set, and --advantage-cap beside a loss without advantages.
    """
    if loss.spec.is_batch_style:
        return config.top_k or 0  # its parameters do not say what it reads
    inputs = {wanted.name: wanted for wanted in loss.spec.inputs}
    is_policy = learns_by_advantages(loss)
    if config.advantage_cap is not None and not is_policy:
        raise LossContractError(
            f"advantage_cap is for losses that read advantages, which the teacher then gives; {loss.name} does not"
        )
    if is_policy and config.mode == "off_policy":
        raise LossContractError(
            f"{loss.name} reads advantages, which the teacher gives to answers that the student sampled: choose --mode "
            "on_policy, or a loss over the teacher's candidates, such as topk_forward_kl"
        )
    if "teacher_logprobs" not in inputs and not is_policy:
        raise LossContractError(
            f"{loss.name} reads neither teacher_logprobs nor advantages, so it would learn nothing from the teacher. Choose a distillation "
            "loss (see `lossbook losses list`); for losses without a teacher use `lossbook train sft`"
        )
    if config.mode == "off_policy" and "sampling_logprobs" in inputs and inputs["sampling_logprobs"].required:
        raise LossContractError(
            f"{loss.name} reads sampling_logprobs, which only sampled answers have: choose --mode on_policy, or a loss over "
            "the teacher's candidates, such as topk_forward_kl"
        )
    if loss.spec.candidates:
        return config.top_k or DEFAULT_TOP_K
    if config.top_k:
        raise LossContractError(
            f"{loss.name} reads the teacher's logprob of each target token, not of candidates: leave --top-k out, or choose "
            "a loss over candidates, such as topk_forward_kl"
        )
    return 0


def learns_by_advantages(loss: Loss) -> bool:
    """Whether it is a policy loss, which distils where its advantages are the teacher's logprobs less the student's."""
    names = {wanted.name for wanted in loss.spec.inputs}
    return "advantages" in names and "teacher_logprobs" not in names


def load_examples(
    config: DistillConfig, tokenizer: Any
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
