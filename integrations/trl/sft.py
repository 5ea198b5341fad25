"""TRL's SFTTrainer with another loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...datums.inputs import IGNORE_LABEL
from ..requirements import check_couples, check_default
from .replaced import Replaced, first, overheard


class SFTLoss(Replaced):
    """SFTTrainer with another loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_default(self.args, ("loss_type",), "SFTTrainer", self.lossbook_loss)
        if self.padding_free:
            check_couples(
                self.lossbook_loss,
                ("token",),
                "padding_free and packing put many sequences into one row: use padded batches",
            )

    def count_of(self, batch: Any) -> Any:
        """What one batch adds to the denominator."""
        return self.lossbook_loss.count_tensors(mask=_labels(batch) != IGNORE_LABEL)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Ours, of the log-probabilities that TRL's loss read."""
        mask = _labels(inputs) != IGNORE_LABEL
        with overheard(model) as heard:
            theirs = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.share("on_tensors", **self.given(first(heard, "SFTTrainer"), mask))
        return (loss, theirs[1]) if return_outputs else loss


def _labels(batch: Any) -> Tensor:
    return batch["shift_labels"] if "shift_labels" in batch else batch["labels"][:, 1:]
