"""TRL's GRPOTrainer with another loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from ..requirements import check_default, is_against_rollout, reads, wanted
from .replaced import Replaced, first


class GRPOLoss(Replaced):
    """GRPOTrainer with another loss."""

    gives = ("sampling_logprobs", "advantages", "ref_logprobs", "rollout_logprobs")
    own_settings = (
        "loss_type",
        "epsilon",
        "epsilon_high",
        "delta",
        "importance_sampling_level",
        "top_entropy_quantile",
        "off_policy_mask_threshold",
        "entropy_coef",
        "use_adaptive_entropy",
        "use_bias_correction_kl",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "vespo_k_pos",
        "vespo_lambda_pos",
        "vespo_k_neg",
        "vespo_lambda_neg",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step_outputs: list[tuple[Tensor, Tensor | None]] | None = None
        check_default(self.args, self.own_settings, "GRPOTrainer", self.lossbook_loss)
        self._check_reference()
        self._check_rollouts()

    def _check_reference(self) -> None:
        loss, beta = self.lossbook_loss, self.args.beta
        own = {
            factor * part.settings.get("kl_coefficient", 1.0)
            for factor, part in loss.parts
            if reads(part, "ref_logprobs")
        }
        if own and not beta:
            raise LossConfigError(
                f"GRPOTrainer: {loss.name} reads ref_logprobs, and beta=0 loads no reference. Set beta to the coefficient of the "
                "KL, or the loss's kl_coefficient to 0"
            )
        if beta and not own:
            raise LossConfigError(
                f"GRPOTrainer: beta={beta} is the KL of TRL's own loss, which {loss.name} replaces without one. Leave it at 0, or "
                'add 0.001 * get_loss("reference_kl")'
            )
        if own and beta not in own:
            raise LossConfigError(
                f"GRPOTrainer: beta={beta} and the loss's {min(own)} are two coefficients of the KL to the reference: set them equal"
            )

    def _check_rollouts(self) -> None:
        loss, args = self.lossbook_loss, self.args
        if args.steps_per_generation % args.gradient_accumulation_steps:
            raise LossConfigError(
                f"GRPOTrainer: steps_per_generation={args.steps_per_generation} must be a multiple of "
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}: a step over samples that are not drawn yet cannot be counted"
            )
        uses_rollouts = is_against_rollout(loss) or "rollout_logprobs" in wanted(loss, optional=True)
        if reads(loss, "rollout_logprobs") and not args.use_vllm:
            raise LossConfigError(f"GRPOTrainer: {loss.name} reads rollout_logprobs, which only use_vllm=True gives")
        if args.use_vllm and args.vllm_importance_sampling_correction and not uses_rollouts:
            raise LossConfigError(
                f"GRPOTrainer: vllm_importance_sampling_correction=True corrects TRL's own loss, which {loss.name} replaces. Set it "
                f'to False, or correct ours: "{loss.name}+sequence_mask"'
            )

    def step_batches(self) -> list[Any]:
        """The samples of the coming step, out of those that were generated together."""
        buffered = self._buffered_inputs
        return [buffered[(self._step + i) % len(buffered)] for i in range(len(self._step_batches))]

    def step_count(self) -> Tensor:
        """As ever; a step whose completions are all masked, as when each was cut off, has loss 0."""
        count = super().step_count()
        divided = torch.tensor([part.reduction != "sum" for _, part in self.lossbook_loss.parts])
        return torch.where(count == 0, divided.to(count).view_as(count), count)

    def count_of(self, batch: Any) -> Any:
        """What one batch adds to the denominator."""
        return self.lossbook_loss.count_tensors(mask=_completion_mask(batch))

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._step_outputs is not None:
            self._step_outputs.append(outputs[:2])
        return outputs

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        self._step_outputs = heard = []
        try:
            super()._compute_loss(model, inputs)
        finally:
            self._step_outputs = None
        mode = "train" if self.model.training else "eval"
        for name in [name for name in self._metrics[mode] if "clip_ratio" in name]:  # of TRL's epsilon
            del self._metrics[mode][name]
        return self.share("on_tensors", **self._given(inputs, *first(heard, "GRPOTrainer")))

    def _given(self, inputs: Any, logprobs: Tensor, entropy: Tensor) -> dict[str, Any]:
        """What the loss reads of a batch of TRL's, and of its forward."""
        loss = self.lossbook_loss
        old = inputs.get("old_per_token_logps", logprobs.detach())
        rollout = inputs.get("sampling_per_token_logps", old)
        rollout = torch.where(rollout.isnan(), old, rollout)  # a token that vLLM could not score is left as it is
        given = {
            "logprobs": logprobs,
            "entropy": entropy,
            "sampling_logprobs": rollout if is_against_rollout(loss) else old,
            "advantages": inputs["advantages"],
            "ref_logprobs": inputs.get("ref_per_token_logps"),
            "rollout_logprobs": rollout if "sampling_per_token_logps" in inputs else None,
        }
        known = {*loss.outputs, *wanted(loss, optional=True)}
        return {"mask": _completion_mask(inputs)} | {name: value for name, value in given.items() if name in known}


def _completion_mask(batch: Any) -> Tensor:
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
