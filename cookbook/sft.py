"""Supervised fine-tuning: LoRA on conversations, with any registered loss.

    lossbook train sft --data train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
    lossbook train sft --task family_relationships --loss my_losses:focal --loss-config gamma 2.0
    lossbook train sft --config run.toml --steps 500 --resume

Data: JSON Lines, a row each: {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or
{"tokens": [...], "weights": [...]}; `lossbook data show FILE` shows which tokens are learned. Or a reasoning-gym task.

What to watch. `loss` is, for cross_entropy, the mean negative log-likelihood of the answers' tokens in nats: at step 0
1 to 3 for a model that knows the language (ln V, 11 for 50,000 tokens, means that it knows nothing, or that the chat
template is not its own), then falling fast for some tens of steps, then slowly. `held_out_nll` must fall with it: when
it turns and rises, the data are being memorised, so stop there or take fewer epochs. `grad_norm` is largest in the
first steps and should settle; if it grows with the loss, lower the learning rate. `label_tokens_lost_frac` in the data
report is what truncation cost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..datums.errors import LossContractError
from ..datums.files import read_jsonl
from ..datums.report import DataReport, build_datums
from ..datums.rows import datum_from_row
from ..datums.truncation import Truncation
from ..datums.types import AdamParams, Datum
from ..losses.loss import Loss
from ..losses.registry import get_loss
from ..trainer import ServiceClient
from .batches import Batches
from .configs import Setting
from .evaluation import HeldOut
from .interrupts import stop_on_signals
from .loggers import StepDisplay, error_place
from .plots import try_plot
from .runs import REPORT, open_run
from .tasks import Task, question_datum


class SFTConfig(BaseModel):
    """Settings of the recipe; every field is a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str = Field("tiny", description="hub id, local directory, .gguf file, or 'tiny' (built in code)")
    out: Path = Field(Path("runs/sft"), description="folder of the run: settings, metrics, checkpoints, adapter")
    data: Path | None = Field(None, description="JSON Lines file to train on")
    eval_data: Path | None = Field(None, description="JSON Lines file whose loss is watched but not trained on")
    task: str | None = Field(None, description="a reasoning-gym task, in place of data")
    task_config: dict[str, Setting] = Field({}, description="settings of the task: --task-config max_words 5")
    task_size: int = Field(512, ge=1, description="questions of the task to train on")
    held_out: int = Field(50, ge=0, description="questions of the task that only measure")
    train_on: Literal["all_assistant", "last_assistant", "all"] = Field("all_assistant", description="which turns")
    max_length: int | None = Field(None, ge=2, description="tokens a sequence may have; None for no limit")
    truncation: Truncation = Field("error", description="what happens to longer sequences")
    loss: str = Field("cross_entropy", description="a registered id (`lossbook losses list`) or module:function")
    loss_config: dict[str, Setting] = Field({}, description="settings of the loss: --loss-config reduction sum")
    rank: int = Field(16, ge=1, description="rank of the LoRA adapters")
    train_unembed: bool = Field(False, description="adapt the output head too")
    learning_rate: float = Field(5e-4, gt=0)
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: down to 0 at the last step")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    grad_clip_norm: float = Field(1.0, ge=0, description="0 for no clipping")
    batch_size: int = Field(8, ge=1, description="sequences a step")
    epochs: int = Field(1, ge=1, description="times that every sequence is seen, unless steps is given")
    steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")
    seed: int = Field(0, ge=0, description="of the adapters' initial values, the order of the data, and the task")
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0 for before and after only")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 for one at the end")
    resume: bool = Field(False, description="continue the run in `out` where its last checkpoint is")
    overwrite: bool = Field(False, description="delete the run in `out` and begin anew")

    @model_validator(mode="after")
    def _one_source(self) -> SFTConfig:
        if (self.data is None) == (self.task is None):
            raise ValueError("choose one of --data FILE and --task NAME")
        if (self.task is None and self.task_config) or (self.data is None and self.eval_data is not None):
            raise ValueError("task_config belongs to --task, eval_data to --data")
        return self


def main(config: SFTConfig) -> dict[str, float]:
    """Train; returns the last value of every metric. After Ctrl-C it saves and raises SystemExit(130)."""
    loss = training_loss(config)  # an unknown id or setting ends here, before anything is loaded
    settings = config.model_dump(mode="json", exclude={"resume", "overwrite"})
    run = open_run(config.out, settings, resume=config.resume, overwrite=config.overwrite, may_change=EXTENDABLE)
    service = ServiceClient(checkpoint_dir=run.checkpoints)
    training = service.create_lora_training_client(
        config.model, rank=config.rank, seed=config.seed, train_unembed=config.train_unembed
    )
    datums, report, held_out = load_data(config, training.get_tokenizer())
    print(report.render())
    run.write(REPORT, report.to_json())
    loss.check(datums)
    batches = Batches(len(datums), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    start = run.continue_from(training, total)
    with stop_on_signals() as stop, StepDisplay(total, start) as display:
        if start == 0:
            held_out.measure(training, run, display, step=0)
        for step in range(start + 1, total + 1):
            batch = [datums[i] for i in batches.at(step)]
            with error_place(f"step {step}"):
                output = training.forward_backward(batch, loss).result()
                update = training.optim_step(adam_params(config, step, total)).result()
            run.log_step(step, batch, output, update, display)
            if step == total or (config.eval_every and step % config.eval_every == 0):
                held_out.measure(training, run, display, step=step)
            if stop or step == total or (config.save_every and step % config.save_every == 0):
                saved = training.save_state(run.checkpoint_name(step), overwrite=True).result().path
                stop.leave(f"stopped after step {step}, saved in {saved}; continue with --resume")
    training.export_adapter(run.adapter).result()
    print(f"metrics {run.metrics}\nadapter {run.adapter}\n{try_plot({run.path.name: run.path}, run.curve)}")
    return run.last_numbers()


#: What may differ between a run and its continuation: how long it goes on (under a linear schedule that changes the
#: steps to come, too), and how often it looks and saves.
EXTENDABLE = ("steps", "epochs", "eval_every", "save_every")


def training_loss(config: SFTConfig) -> Loss:
    """The loss as configured; one a token is averaged over the batch's tokens unless it says otherwise.

    A mean keeps the gradient's size, and so the meaning of `grad_clip_norm`, from depending on the batch.
    """
    loss: Loss = get_loss(config.loss, **config.loss_config)
    if loss.couples == "pair":
        raise LossContractError(f"{loss.name} compares pairs, but this recipe trains on single sequences")
    if loss.spec.per == "token" and loss.reduction == "sum" and "reduction" not in config.loss_config:
        return get_loss(loss, reduction="token-mean")
    return loss


def load_data(config: SFTConfig, tokenizer: Any) -> tuple[list[Datum], DataReport, HeldOut]:
    """Datums to train on, what became of their rows, and what is held out."""
    options: dict[str, Any] = {"max_length": config.max_length, "truncation": config.truncation}
    if config.task is not None:
        task = Task(config.task, config.task_config, seed=config.seed)
        questions = task.held_out(config.held_out)
        make = partial(question_datum, tokenizer=tokenizer, **options)
        datums, report = build_datums(task.training(config.task_size, questions), make)
        return datums, report, HeldOut([question_datum(question, tokenizer) for question in questions], task, questions)
    make = partial(datum_from_row, tokenizer=tokenizer, train_on=config.train_on, **options)
    held_out = build_datums(read_jsonl(config.eval_data), make)[0] if config.eval_data else []
    datums, report = build_datums(read_jsonl(config.data or ""), make)
    return datums, report, HeldOut(held_out)


def adam_params(config: SFTConfig, step: int, total: int) -> AdamParams:
    """The optimizer's numbers for a step, from 1."""
    rising = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    falling = (total - step + 1) / total if config.schedule == "linear" else 1.0
    return AdamParams(learning_rate=config.learning_rate * rising * falling, grad_clip_norm=config.grad_clip_norm)
