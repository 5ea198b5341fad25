"""Losses in `transformers.Trainer`: as its `compute_loss_func`, or in a Trainer whose batches carry what the loss reads.

    from lossbook.integrations.transformers import compute_loss_func
    Trainer(model, args, train_dataset=rows, data_collator=collate, compute_loss_func=compute_loss_func("dft"))

`compute_loss_func` is for losses per token that read nothing but the labels, and divides by the Trainer's own
`num_items_in_batch`. `with_loss(Trainer, "grpo")` is for every other loss and reduction: it counts the step's batches itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..datums.errors import LossConfigError, LossContractError, MissingInput
from ..datums.inputs import IGNORE_LABEL
from .accumulated import Accumulated, pop_inputs, shifted
from .requirements import OF_LOGITS, AnyLoss, adapted, check_couples, check_reads, denominators, reads, wanted

TrainerClass = TypeVar("TrainerClass", bound=type)


def compute_loss_func(loss: AnyLoss, *, shift: bool = True, **settings: Any) -> Callable[..., Tensor]:
    """`loss` as the argument of that name of `transformers.Trainer`.

    shift: position t predicts the label of t + 1, as in causal language models; False where labels lie beside their logits, as
    in encoder-decoder models. settings: those of the loss.

    The Trainer counts the labels other than -100 of all micro-batches of a step, and, with `average_tokens_across_devices`, of
    all processes; this count is the denominator of a `token-mean`, so accumulation and data parallelism change nothing. Without
    `average_tokens_across_devices` it counts each process's own, and data parallelism averages their means. A `sum` is not
    divided.

    Raises MissingInput for losses that read more than the labels, LossContractError for those that see a whole sequence, pair
    or batch, or divide by another count. The Trainer's own `label_smoothing_factor` does nothing beside any
    `compute_loss_func`: use the loss "label_smoothing".
    """
    where = "compute_loss_func"
    made = adapted(loss, settings, where)
    check_reads(
        made,
        where,
        outputs=OF_LOGITS,
        inputs=(),
        instead="Use lossbook.integrations.transformers.with_loss(Trainer, loss)",
    )
    check_couples(made, ("token",), "compute_loss_func is told of tokens only: use with_loss(Trainer, loss)")

    def computed(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise MissingInput(f"{made.name} reads labels, and this batch has none: the collator makes them")
        if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() > 1:
            raise LossConfigError(
                f"{made.name}: DataParallel is not supported: start the script with torchrun or accelerate"
            )
        logits = outputs["logits"]
        if shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        return made.on_logits(logits, labels, denominator=denominators(made, num_items_in_batch))[0]

    return computed


def with_loss(trainer: TrainerClass, loss: AnyLoss, **settings: Any) -> TrainerClass:
    """A subclass of `trainer` (transformers' Trainer, or your own subclass of it) that trains on `loss`.

        GRPO = with_loss(Trainer, "grpo", kl_coefficient=0.0)
        GRPO(model, args, train_dataset=rows, data_collator=LossCollator(pad_token_id)).train()

    A batch carries input_ids, attention_mask, labels (-100: not trained on) and the inputs of the loss: [B, T] beside the
    labels that they speak of, or [B] per sequence. All of a step is divided by the count of its micro-batches on all processes, under
    every reduction. Pairs are rows 2i and 2i + 1 of a micro-batch.

    Raises LossConfigError for trainers that compute their own loss, and for settings that would contradict this one.
    """
    if not any(base.__module__ == "transformers.trainer" for base in trainer.__mro__):
        raise LossConfigError(f"{trainer.__name__} is not a transformers.Trainer")
    if own := next((base for base in trainer.__mro__ if base.__module__.split(".")[0] in _OTHER_DOORS), None):
        library = own.__module__.split(".")[0]
        raise LossConfigError(
            f"{trainer.__name__} computes a loss of {library}: use lossbook.integrations.{library}.{_OTHER_DOORS[library]}"
        )
    made = adapted(loss, settings, trainer.__name__)
    check_reads(made, trainer.__name__, outputs=OF_LOGITS, inputs=wanted(made))
    return cast(TrainerClass, type(trainer.__name__, (FromBatches, trainer), {"lossbook_loss": made}))


#: Libraries whose trainers compute a loss of their own, and what takes its place.
_OTHER_DOORS = {"trl": "with_loss", "sentence_transformers": "EmbeddingLoss"}


class FromBatches(Accumulated):
    """A Trainer whose batches carry labels and the inputs of the loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loss, strategy = self.lossbook_loss, self.args.train_sampling_strategy
        if any(part.spec.per == "pair" for _, part in loss.parts) and strategy != "sequential":
            raise LossConfigError(
                f"{loss.name} takes rows 2i and 2i + 1 as a pair, which train_sampling_strategy={strategy!r} would tear apart: set "
                "'sequential', and shuffle pairs in the data set"
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known = cast("list[str]", self._signature_columns)
        self._signature_columns = [*dict.fromkeys([*known, "labels", *wanted(self.lossbook_loss, optional=True)])]

    def count_of(self, batch: Mapping[str, Any]) -> Any:
        """What one batch adds to the denominator."""
        labels, inputs = self._given(dict(batch))
        return self.lossbook_loss.count_tensors(mask=labels != IGNORE_LABEL, **inputs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch, from logits."""
        rest = dict(inputs)
        labels, given = self._given(rest)
        outputs = model(**rest)
        loss = self.share("on_logits", outputs["logits"][:, :-1], labels, **given)
        return (loss, outputs) if return_outputs else loss

    def _given(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Labels and inputs where they are predicted, taken out of `batch`."""
        if "labels" not in batch:
            raise MissingInput(
                f"{self.lossbook_loss.name} reads labels, which this batch does not carry: {', '.join(batch)}"
            )
        names = wanted(self.lossbook_loss, optional=True)
        labels, given = batch.pop("labels"), pop_inputs(batch, names)
        for name in names:
            if name not in given and reads(self.lossbook_loss, name):
                raise MissingInput(
                    f"{self.lossbook_loss.name} reads {name!r}, which this batch does not carry: {', '.join(batch)}. "
                    "Has the collator dropped it?"
                )
        return labels[:, 1:], shifted(given)


class LossCollator:
    """Rows to a batch: `input_ids` padded on the right with `pad_token_id`, `labels` with -100, any other list with 0.

    A row's other columns are one number per token, beside the token that they speak of, or one number for the row. Without
    `labels`, every token is a label.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch, with an attention mask."""
        filling = {"input_ids": self.pad_token_id, "labels": IGNORE_LABEL}
        batch = {name: self._joined([row[name] for row in rows], filling.get(name, 0)) for name in rows[0]}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        batch.setdefault("labels", batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_LABEL))
        for row, length in zip(rows, lengths.tolist(), strict=True):
            if wrong := [name for name, value in row.items() if isinstance(value, Sequence) and len(value) != length]:
                raise LossContractError(f"{wrong[0]!r} has {len(row[wrong[0]])} numbers beside {length} tokens")
        return batch

    @staticmethod
    def _joined(values: list[Any], filler: float) -> Tensor:
        tensors = [torch.as_tensor(value) for value in values]
        if tensors[0].ndim == 0:
            return torch.stack(tensors)
        return pad_sequence(tensors, batch_first=True, padding_value=filler)
