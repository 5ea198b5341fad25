"""TRL's DPOTrainer with another loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from ..requirements import check_default, reads
from .replaced import Replaced, first, overheard


class DPOLoss(Replaced):
    """DPOTrainer with another loss. Its batches hold all chosen rows, then all rejected ones; ours lie in pairs."""

    gives = ("ref_logprobs", "label")
    own_settings = (
        "loss_type",
        "loss_weights",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "label_smoothing",
        "use_weighting",
        "discopop_tau",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loss = self.lossbook_loss
        check_default(self.args, self.own_settings, "DPOTrainer", loss)
        if self.args.precompute_ref_log_probs and reads(loss, "ref_logprobs"):
            raise LossConfigError(
                f"DPOTrainer: precompute_ref_log_probs=True keeps a sum per sequence, and {loss.name} reads ref_logprobs per "
                "token: leave it off"
            )
        betas = {part.settings["beta"] for _, part in loss.parts if "beta" in part.settings}
        if self.args.beta not in betas:
            check_default(self.args, ("beta",), "DPOTrainer", loss)
        self.beta = next(iter(betas), self.beta)  # TRL's rewards/... are read in the loss's own beta

    def count_of(self, batch: Any) -> Any:
        """What one batch adds to the denominator."""
        mask = in_pairs(batch["completion_mask"][:, 1:])
        return self.lossbook_loss.count_tensors(mask=mask, **self._labels(mask))

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        reference = self.model if self.ref_model is None else self.ref_model
        with overheard(model) as heard, overheard(reference) as heard_of_reference:
            theirs = super()._compute_loss(model, inputs, return_outputs)
        mask = inputs["completion_mask"][:, 1:]
        given = self.given(first(heard, "DPOTrainer"), mask)
        if reads(self.lossbook_loss, "ref_logprobs"):
            # without a model of its own the reference is the policy's, under other adapters, run behind it
            given["ref_logprobs"] = heard_of_reference[-1].log_probs[:, -mask.shape[1] :]
        paired = {name: in_pairs(value) for name, value in given.items()}
        loss = self.share("on_tensors", **paired, **self._labels(mask))
        return (loss, theirs[1]) if return_outputs else loss

    def _labels(self, mask: Tensor) -> dict[str, Tensor]:
        """`label` for losses of single responses: 1 for the chosen, 0 for the rejected."""
        alternating = torch.arange(1, len(mask) + 1, device=mask.device) % 2
        return {"label": alternating} if reads(self.lossbook_loss, "label") else {}


def in_pairs(rows: Tensor) -> Tensor:
    """[2P, ...]: P chosen, then P rejected, to rows 2i and 2i + 1."""
    return torch.stack(rows.chunk(2), dim=1).flatten(0, 1)
