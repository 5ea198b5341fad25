"""What surrounds every recipe's loop: the model, resuming, Ctrl-C, the display, checkpoints, and the step in errors.

run, training = begin(config)
...                                                   # load the data
introduce(config, run, training, rows=len(data), steps=total)
with Loop(config, run, training, total) as loop:
    for step in loop:
        output = training.forward_backward(batch, loss).result()
        update = training.optim_step(adam_params(config, step, total)).result()
        loop.log(step, batch, output, update, loss=loss)
        if loop.is_evaluated(step):
            ...
return finish(run, training)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..datums.errors import LossbookError, located
from ..trainer import ServiceClient, seed_everything
from ..trainer.workers.launch import join_torchrun
from .export.export import write_weights
from .inspect.token_records import record_loss, record_sequences
from .reports.plots import try_plot
from .run.configs import adam_params, resolved_settings, torch_dtype
from .run.data_digest import check_data, data_digests
from .run.interrupts import StopAtOnce, StopRequest, stop_on_signals
from .run.loggers import StepDisplay
from .run.records import best_step
from .run.runs import Run, find_checkpoint, open_run
from .run.trackers import Place, Trackers, check_trackers
from .settings.base import EXTENDABLE, MEMORY, RecipeConfig
from .steps.checkpoints import keep_newest
from .steps.introduction import introduce
from .steps.parts import RunPart
from .steps.samples import record_samples
from .steps.stopping import EarlyStopping

if TYPE_CHECKING:
    from ..datums.types import Datum
    from ..trainer import TrainingClient
    from ..trainer.responses import ForwardBackwardOutput, OptimStepResponse

__all__ = ["Loop", "begin", "finish", "introduce", "make_client"]

#: Evaluations, at most, at which sequences are recorded token by token.
RECORDINGS = 10


def begin(
    config: RecipeConfig, *, value_head: bool = False, masked_lm_head: bool = False
) -> tuple[Run, TrainingClient]:
    """Open the run's folder and make a client for its model, with the weights of `start_from` if given. Nothing is written yet.

    Raises MissingExtraError for a tracker that is not installed, DataFileError for a data file that is not there,
    RunError as `open_run` does, and for a resumed run whose data files have changed, ModelError, and CheckpointError when
    `start_from` belongs to another model.
    """
    check_trackers(config.log_to)
    join_torchrun(config.workers, config.device)
    digests = data_digests([getattr(config, name, None) for name in ("data", "eval_data")])
    start = None if config.start_from is None else find_checkpoint(config.start_from)
    run = open_run(
        config.out,
        config.settings(),
        resume=config.resume,
        overwrite=config.overwrite,
        may_change=EXTENDABLE,
        defaults=config.defaults(),
        later=True,
    )
    check_data(run, digests, changed_data=config.changed_data)
    training = make_client(config, run.checkpoints, value_head=value_head, masked_lm_head=masked_lm_head)
    if start is not None:
        training.load_state(str(start), optimizer=False).result()
    return run, training


def make_client(
    config: RecipeConfig, checkpoints: Path, *, value_head: bool = False, masked_lm_head: bool = False
) -> TrainingClient:
    """A client that trains LoRA adapters on the configured model, or with `all_weights` all its weights.

    The global generators of Python, NumPy and torch get the run's seed.
    """
    seed_everything(config.seed)
    sampling = getattr(config, "sampling_workers", None)  # of recipes that sample
    service = ServiceClient(
        device=config.device,
        dtype=torch_dtype(config.dtype),
        base_weights=config.base_weights,
        checkpoint_dir=checkpoints,
        fused_layers=config.fused_layers,
        deterministic=config.deterministic,
        **({} if config.workers is None else {"workers": config.workers}),
        **({} if config.tensor_parallel == 1 else {"tensor_parallel": config.tensor_parallel}),
        **({} if sampling is None else {"sampling_workers": sampling}),
        **{name: getattr(config, name) for name in MEMORY},
    )
    if config.all_weights:
        return service.create_training_client(config.model, value_head=value_head, masked_lm_head=masked_lm_head)
    return service.create_lora_training_client(
        config.model,
        rank=config.rank,
        seed=config.seed,
        train_mlp=config.train_mlp,
        train_attn=config.train_attn,
        train_unembed=config.train_unembed,
        lora_targets=config.lora_targets or None,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        value_head=value_head,
        masked_lm_head=masked_lm_head,
    )


def finish(run: Run, training: TrainingClient) -> dict[str, float]:
    """Write the adapter (or the whole model) and the curve, print where they are, and return each metric's last value.

    With early stopping the weights are those of the best checkpoint.
    """
    best = best_step(run.path)
    if best is not None:
        training.load_state(str(run.checkpoint(best)), optimizer=False).result()
        print(f"best    {run.checkpoint(best)}")
    written = write_weights(run, training)
    name = "adapter" if written == run.adapter else "model  "
    print(f"metrics {run.metrics}\n{name} {written}\n{try_plot({run.path.name: run.path}, run.curve)}")
    run.release()
    return run.last_numbers()


class Loop:
    """The steps of a run, from the one after its last checkpoint to `total`; use it in a `with` block.

    keep     called before each checkpoint; returns a recipe's own state (JSON), which is kept with the checkpoint
    start    the step of the checkpoint that a resumed run continues from, else 0
    kept     what `keep` returned for that checkpoint; None for a new run

    After each step it saves a checkpoint and answers `sample_prompts` where they are due, and exits if Ctrl-C or SIGTERM
    arrived. Errors raised in a step name the step and the last checkpoint. Within the block, `run.log` also sends metrics
    to the trackers of `log_to`.
    """

    def __init__(
        self,
        config: RecipeConfig,
        run: Run,
        training: TrainingClient,
        total: int,
        *,
        keep: Callable[[], Any] | None = None,
        title: str = "training",
    ) -> None:
        self.config = config
        self.run = run
        self.training = training
        self.total = total
        adam_params(config, 1, total)  # raises where the schedule does not fit the number of steps
        self.start = 0
        self.kept: Any = None
        self.display = StepDisplay(total, title=title)
        self._keep = keep
        self._part: RunPart | None = None
        self._stopping = EarlyStopping(config, run)
        self._loss_is_recorded = False
        self._title = title
        self._step: int | None = None
        self._stop = StopRequest()
        self._inside = ExitStack()

    def __enter__(self) -> Loop:
        self.start = self.run.continue_from(self.training, self.total)
        self.run.lock.busy = True
        self.kept = self.run.kept(self.start) if self.start else None
        if self.run.about is not None:
            self._part = RunPart(self.run, self.run.about, self.start)
        self._stopping.continue_from(self.start)
        self._stop = self._inside.enter_context(stop_on_signals())
        self.display = self._inside.enter_context(StepDisplay(self.total, self.start, title=self._title))
        if self.config.log_to:
            settings = resolved_settings(self.config)
            place = Place(self.run.path, self.config.tracker_project, self.config.run_name)
            trackers = Trackers(self.config.log_to, place, settings, self.start)
            self.run.trackers = self._inside.enter_context(trackers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside.__exit__(kind, error, traceback)
        self.run.lock.busy = False
        if error is not None:
            self.run.release()
        if isinstance(error, StopAtOnce) and self._step is not None:
            print(f"stopped in step {self._step}; --resume continues from the last checkpoint", file=sys.stderr)
        if isinstance(error, LossbookError) and self._step is not None:
            in_step = located(error, f"step {self._step}")
            in_step.args = (f"{in_step} {self._how_to_resume()}",)
            raise in_step from error
        if isinstance(error, Exception) and self._step is not None:  # from a user's loss, or a library
            error.add_note(f"This was in step {self._step}. {self._how_to_resume()}")

    def __iter__(self) -> Iterator[int]:
        if self.start == 0:
            self._sample(0)
        step = self.start
        while step < self.total and not self._stopping.is_over:
            self._step = step = step + 1
            yield step
            is_last = step == self.total or self._stopping.is_over
            if is_last or _is_due(step, self.config.sample_every):
                self._sample(step)
            is_best = step == self._stopping.best_step
            if self._stop or is_last or is_best or _is_due(step, self.config.save_every):
                self._save(step)
        self._step = None
        if self._stopping.is_over:
            self.display.note(self._stopping.verdict(step))

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation follows this step: every `eval_every`th step and the last."""
        return step == self.total or _is_due(step, self.config.eval_every)

    def log(
        self,
        step: int,
        batch: Sequence[Datum],
        output: ForwardBackwardOutput,
        update: OptimStepResponse,
        more: Mapping[str, float] | None = None,
        *,
        shown: Sequence[str] = ("loss", "grad_norm"),
        loss: Any = None,
    ) -> None:
        """Log and show a step: `loss`, the metrics of the loss and the optimizer, `more`, and tokens per second.

        shown: the metrics in the progress display. loss: the loss that gave `output`; if given, some sequences are
        recorded token by token, as `record` does.
        """
        self.run.log_step(step, batch, output, update, self.display, more, shown=shown)
        if loss is not None:
            self.record(step, loss, batch, output)

    def record(self, step: int, loss: Any, batch: Sequence[Datum], output: ForwardBackwardOutput) -> None:
        """Record some sequences of a call token by token, at the first step, the last, and up to `RECORDINGS` evaluations.

        `log` calls it where a step is one call; where a step is several calls, pass the data and output of one of them.
        """
        if not self._loss_is_recorded:
            record_loss(self.run, loss)
            self._loss_is_recorded = True
        if self._is_recorded(step):
            record_sequences(self.run, step, loss, batch, output, self.training.get_tokenizer())

    def _is_recorded(self, step: int) -> bool:
        """Depends on the step alone, so that a resumed run records the same steps."""
        every = self.config.eval_every * -(-self.total // (self.config.eval_every * RECORDINGS or 1))
        return step in (1, self.total) or _is_due(step, every)

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log and show the metrics of an evaluation after a step (0: before the first)."""
        self._stopping.evaluated(step, metrics)
        if metrics:
            self.run.log(step, metrics)
            self.display.note(f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def _sample(self, step: int) -> None:
        prompts, tokens = self.config.sample_prompts, self.config.sample_tokens
        if prompts:
            record_samples(self.run, self.display, self.training, step, prompts, max_tokens=tokens)

    def _how_to_resume(self) -> str:
        _, saved = self.run.last_checkpoint()
        if saved is None:
            return "(No checkpoint was saved yet: see --save-every.)"
        return f"(The last checkpoint is {saved}; --resume continues from it.)"

    def _save(self, step: int) -> None:
        self.run.keep(step, None if self._keep is None else self._keep())
        self.run.make()  # raises where the folder is no longer this run's
        saved = self.training.save_state(self.run.checkpoint_name(step), overwrite=True).result().path
        if self._part is not None:
            self._part.reached(step)
        self._stopping.record()
        if self.config.keep_checkpoints is not None:
            keep_newest(self.run, self.config.keep_checkpoints, self._stopping.best_step)
        self._stop.leave(f"stopped after step {step}, saved in {saved}; continue with --resume")


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
