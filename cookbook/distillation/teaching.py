"""What a student learns from a teacher at a step: candidates, logprobs, advantages or whole distributions, as the loss reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...datums.errors import LossContractError
from ...datums.types import Datum
from ...losses.loss.loss import AnyLoss, Loss
from ...losses.registry import get_loss
from ...losses.spec.vocabulary import TEACHER
from ..run.batches import seed_of
from ..run.configs import torch_dtype
from .crossed import HeldOutCrossed, Tokenizers
from .divergence import HeldOutDivergence
from .examples import DistillationExample, sample_answers
from .teachers import (
    open_teacher,
    shared_vocabulary,
    with_candidates,
    with_teacher_advantages,
    with_teacher_logprobs,
)

if TYPE_CHECKING:
    from ...trainer import ReferenceClient, TrainingClient
    from ..settings.distill import DistillConfig

#: Candidates per position where a loss compares candidates and --top-k is not set.
DEFAULT_TOP_K = 20


@dataclass
class Teaching:
    """A teacher beside the student of a run.

    loss: what is trained, cross-entropy included. top_k: candidates per position; 0: none are compared. vocabulary: how many
    token ids both have. tokenizers: for losses over whole distributions, which may be of two tokenizers; else None.
    """

    config: DistillConfig
    training: TrainingClient
    teacher: ReferenceClient
    own: Loss
    loss: AnyLoss
    top_k: int
    vocabulary: int
    tokenizers: Tokenizers | None

    @classmethod
    def of(cls, config: DistillConfig, own: Loss, training: TrainingClient) -> Teaching:
        """Open the configured teacher; the errors are those of `open_teacher`, `shared_vocabulary` and `candidates_wanted`."""
        top_k = candidates_wanted(config, own)
        crosses = is_crossed(own)
        teacher = open_teacher(
            config.teacher,
            training,
            device=config.device,
            dtype=torch_dtype(config.dtype),
            tokens_per_micro_batch=config.tokens_per_micro_batch,
            any_tokenizer=crosses,
        )
        vocabulary = 0 if crosses else shared_vocabulary(training, teacher, samples=config.mode == "on_policy")
        tokenizers = Tokenizers(training.get_tokenizer(), teacher.get_tokenizer()) if reads_whole(own) else None
        if tokenizers is not None and "weights" not in config.loss_config:
            own = get_loss(own, weights="span_weights")  # type: ignore[assignment]
        loss: AnyLoss = own
        if config.cross_entropy:
            loss = own + config.cross_entropy * get_loss("cross_entropy", reduction="token-mean")
        return cls(config, training, teacher, own, loss, top_k, vocabulary, tokenizers)

    @property
    def teacher_tokenizer(self) -> Any:
        """What the teacher reads with; None: the student's."""
        return self.tokenizers.teacher if self.tokenizers is not None else None

    def batch(self, examples: Sequence[DistillationExample], step: int) -> tuple[list[Datum], dict[str, float]]:
        """What a step trains on, given or sampled answers with what the teacher says of their tokens; and metrics of them."""
        config = self.config
        students, teachers = [one.student for one in examples], [one.teacher for one in examples]
        if config.mode == "on_policy":
            sampler, seed = self.training.save_weights_and_get_sampling_client(), seed_of(config.seed, step)
            students, teachers = sample_answers(
                sampler, examples, samples=config.samples, max_tokens=config.max_tokens, seed=seed
            )
        if self.tokenizers is not None:
            if config.mode == "on_policy" and is_crossed(self.own):
                return self.tokenizers.cross_answers(students, examples), self.tokenizers.metrics()
            crossed = [self.tokenizers.cross(*pair) for pair in zip(students, teachers, strict=True)]
            return crossed, self.tokenizers.metrics()
        if self.top_k:
            return with_candidates(
                self.teacher, students, teachers, min(self.top_k, self.vocabulary), self.vocabulary
            ), {}
        told = with_teacher_logprobs(self.teacher, students, teachers)
        return with_teacher_advantages(told, config.advantage_cap) if learns_by_advantages(self.own) else (told, {})

    def forward_backward(self, batch: Sequence[Datum]) -> Any:
        """A future of the step's output; the teacher runs beside the student where whole distributions are read."""
        if self.tokenizers is None:
            return self.training.forward_backward(batch, self.loss)
        return self.training.forward_backward(batch, self.loss, teacher=self.teacher)

    def held_out(self, examples: Sequence[DistillationExample]) -> HeldOutDivergence | HeldOutCrossed:
        """How far the student is from the teacher on held-out answers."""
        if self.tokenizers is not None and is_crossed(self.own):
            compared = [self.tokenizers.cross(one.student, one.teacher) for one in examples]
            return HeldOutCrossed(compared, self.teacher, self.own)
        k = min(self.config.eval_top_k, self.vocabulary)
        return HeldOutDivergence.of(self.teacher, examples, k, self.vocabulary)


def reads_whole(loss: Loss) -> bool:
    """Whether it compares whole distributions, for which the teacher runs beside the student."""
    return TEACHER in loss.spec.outputs


def is_crossed(loss: Loss) -> bool:
    """Whether its teacher may have another tokenizer."""
    return reads_whole(loss) and loss.spec.vocabularies != "same"


def learns_by_advantages(loss: Loss) -> bool:
    """Whether it is a policy loss, which distils where its advantages are the teacher's logprobs less the student's."""
    names = {wanted.name for wanted in loss.spec.inputs}
    return "advantages" in names and "teacher_logprobs" not in names


def candidates_wanted(config: DistillConfig, loss: Loss) -> int:
    """How many of the teacher's candidates the loss compares; 0: it reads something else of the teacher.

    Raises LossContractError for a loss that reads no teacher, one that needs sampled answers off policy, one without
    candidates when --top-k is set, and for --advantage-cap or --cross-entropy beside a loss that has no use for it.
    """
    if loss.spec.is_batch_style:
        return config.top_k or 0  # its parameters do not say what it reads
    inputs = {wanted.name: wanted for wanted in loss.spec.inputs}
    is_policy, is_whole = learns_by_advantages(loss), reads_whole(loss)
    if config.advantage_cap is not None and not is_policy:
        raise LossContractError(
            f"advantage_cap is for losses that read advantages, which the teacher then gives; {loss.name} does not"
        )
    if config.cross_entropy and not is_whole:
        raise LossContractError(
            f"cross_entropy is added to losses over a teacher's whole distribution, whose datums have one target per position; "
            f"{loss.name} is none"
        )
    if is_policy and config.mode == "off_policy":
        raise LossContractError(
            f"{loss.name} reads advantages, which the teacher gives to answers that the student sampled: choose --mode "
            "on_policy, or a loss over the teacher's candidates, such as topk_forward_kl"
        )
    if "teacher_logprobs" not in inputs and not is_policy and not is_whole:
        raise LossContractError(
            f"{loss.name} reads neither teacher_logprobs nor advantages, so it would learn nothing from the teacher. Choose a "
            "distillation loss (see `lossbook losses list`); for losses without a teacher use `lossbook train sft`"
        )
    if config.mode == "off_policy" and "sampling_logprobs" in inputs and inputs["sampling_logprobs"].required:
        raise LossContractError(
            f"{loss.name} reads sampling_logprobs, which only sampled answers have: choose --mode on_policy, or a loss over "
            "the teacher's candidates, such as topk_forward_kl"
        )
    if loss.spec.candidates:
        return config.top_k or DEFAULT_TOP_K
    if config.top_k:
        what = "whole distribution" if is_whole else "logprob of each target token"
        raise LossContractError(
            f"{loss.name} reads the teacher's {what}, not of candidates: leave --top-k out, or choose "
            "a loss over candidates, such as topk_forward_kl"
        )
    return 0
