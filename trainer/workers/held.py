"""`OnWorkers`: a model that workers hold under a number; and `WorkersFrozen`, its weights at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datums.errors import ModelError, WorkerDiedError
from ...datums.types import Datum, SamplingParams
from ...losses.loss.loss import LossLike
from ..engine.checks import Pooling
from ..engine.elsewhere import LossElsewhere
from ..responses import ForwardBackwardOutput, SampleResponse, TopLogprobs
from ..sampling.generate import MAX_ROWS
from ..sampling.params import OWN, Sampled, SampledLogprobs
from ..sampling.prompt_scores import Asked
from ..training.local_models import LocalModels
from ..training.protocol import Frozen, OnProgress
from .flat import FlatDatums, FlatLists, top_of
from .groups import Group
from .sent import SentLoss, merged, own_copy, sent_loss
from .service import Facts
from .workers import Workers


@dataclass(frozen=True)
class Recipe:
    """How a model is made on a rank: a method of `LocalModels`, and its arguments."""

    models: LocalModels
    method: str
    arguments: dict[str, Any]


class OnWorkers:
    """A model that workers hold under a number.

    recipe: how it was made, and can be made again; None for weights that were only there.
    """

    _group: Group
    _number: int
    _facts: Facts

    def __init__(self, workers: Workers, recipe: Recipe | None) -> None:
        self._workers = workers
        self._recipe = recipe

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer, as the first rank has it."""
        return self._facts.tokenizer

    @property
    def facts(self) -> Sampled:
        """What samples are checked against before they are drawn."""
        return self._facts

    @property
    def rows_at_once(self) -> int:
        """Continuations that all ranks together decode at a time."""
        return MAX_ROWS * self._group.size

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        return self._facts.vocab_size

    def forward(
        self,
        datums: Sequence[Datum],
        loss: LossLike,
        pooling: Pooling,
        top_k: int | None = None,
        teacher: Frozen | None = None,
    ) -> ForwardBackwardOutput:
        """Outputs at every position and the loss, without gradients."""
        refuse_whole(loss, teacher)
        sent, flat = self._sent(loss), FlatDatums.of(datums)
        if sent is not None:
            return merged(self._call("forward", flat, sent, pooling, top_k))
        if top_k is not None:
            raise ModelError("top_k goes with a registered loss, which workers know: a function is computed here")
        here = LossElsewhere(datums, loss)
        return here.valued(self._call("forward_kept", flat, here.reads.everywhere(), pooling, False))

    def _sent(self, loss: LossLike) -> SentLoss | None:
        """A loss that every rank can make by its name; None for one that is computed here, from outputs of all ranks."""
        sent = sent_loss(loss)
        return sent if sent is not None and self._workers.know(self._group, sent) else None

    def _take(self, group: Group, number: int, facts: Facts) -> None:
        """Be the model of this number, which the ranks forget with this object."""
        self._group, self._number, self._facts = group, number, facts
        self._forget = self._workers.forget_with(self, group, number)

    def _made(self, recipe: Recipe) -> tuple[Group, int, Facts]:
        """The model, made once more."""
        group, number = self._workers.group(), self._workers.number()
        made = self._workers.call(group, "make", number, recipe.models, recipe.method, recipe.arguments)
        return group, number, made[0]

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        return self._workers.call(self._group, name, self._number, *arguments)

    def _plain(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._call(method, arguments, options)[0]


class WorkersFrozen(OnWorkers):
    """A model's weights at one moment, on workers; see `Frozen`.

    Weights of a file or of a base model are loaded again by new workers, after a death. Those of a model in training are gone.
    """

    def __init__(self, workers: Workers, recipe: Recipe | None, held: tuple[Group, int, Facts] | None = None) -> None:
        super().__init__(workers, recipe)
        if held is None:
            assert recipe is not None
            held = self._made(recipe)
        self._take(*held)

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0."""
        shares = [own_copy(share).dicts() for share in self._call("top_logprobs", FlatDatums.of(datums), k)]
        of_datums = ([top_of(one) for one in of_datum] for of_datum in zip(*shares, strict=True))
        return [max(tops, key=lambda top: len(top.tokens)) for tops in of_datums]  # other ranks' have no rows

    def sample(
        self,
        prompts: Sequence[list[int]],
        num_samples: int,
        params: SamplingParams,
        *,
        seeds: Sequence[int | None] | None = None,
        on_progress: OnProgress | None = None,
        said: SampledLogprobs = OWN,
        asked: Sequence[Asked | None] | None = None,
    ) -> list[SampleResponse]:
        """`num_samples` continuations of each prompt; each rank decodes its share of the prompts."""
        if on_progress is not None:
            raise ModelError("on_progress is called in the process that samples: with workers leave it out")
        own_seeds, questions = None if seeds is None else list(seeds), None if asked is None else list(asked)
        shares = self._call("sample", FlatLists.of(prompts), num_samples, params, own_seeds, said, questions)
        responses: list[Any] = [None] * len(prompts)
        for rank, share in enumerate(shares):
            responses[rank :: len(shares)] = share.responses()
        return responses

    def logprobs(self, tokens: list[int], last: int | None = None) -> list[float | None]:
        """The logprob of each token given those before it (nats); None for the first, and before the last `last`."""
        return self._plain("logprobs", tokens, last)

    def fingerprint(self) -> str:
        """A short text, equal for equal weights; see `weights_fingerprint`."""
        return self._plain("fingerprint")

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone; returns the checkpoint's folder."""
        return self._plain("save_weights", root, name, overwrite=overwrite)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        if self._group.ended and self._recipe is None:
            raise WorkerDiedError(
                "these were a model's weights at one moment, and the workers that held them died: "
                f"ask the training client for them again once it has loaded its checkpoint. {self._group.ended}"
            )
        if self._group.ended and self._recipe is not None:
            self._take(*self._made(self._recipe))
        return super()._call(name, *arguments)


def refuse_whole(loss: LossLike, teacher: Frozen | None) -> None:
    """Raise ModelError for a loss over whole distributions, and for a teacher."""
    if teacher is not None or any(part.spec.reads_vocabulary for _, part in loss.parts):
        raise ModelError(
            f"{loss.name} reads whole distributions of a student and a teacher in one process, and these models live on workers: "
            "train without workers, or take a topk_ loss"
        )
