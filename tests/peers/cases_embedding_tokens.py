"""Late interaction, and vectors over the vocabulary, against Sentence Transformers' multi-vector and sparse encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss
from lossbook.trainer.head.logprobs import Head
from lossbook.trainer.head.sparse import splade_vectors

from .cases_embedding import PAIRS, WIDTH
from .cases_embedding_batches import PACKAGE
from .parity import Parity


class Tokens(torch.nn.Module):
    """A multi-vector encoder that says what it is given."""

    def forward(self, features: dict[str, Tensor], **task: Any) -> dict[str, Tensor]:
        return {"token_embeddings": features["tokens"], "attention_mask": features["attention_mask"]}


def late(*, settings: dict[str, Any], **theirs: Any) -> Callable[[], tuple[float, float]]:
    """Differences of maxsim from MultiVectorMultipleNegativesRankingLoss over texts of 1 to 4 tokens, in three columns."""

    def differences() -> tuple[float, float]:
        from sentence_transformers.multi_vector_encoder import losses, scoring

        random = torch.Generator().manual_seed(2)
        drawn = torch.randn(3 * PAIRS, 4, WIDTH, dtype=torch.float64, generator=random)
        lengths = [1 + i % 4 for i in range(3 * PAIRS)]
        mask = torch.tensor([[t < length for t in range(4)] for length in lengths])
        data = [Datum(ModelInput.from_ints([1] * length), {"weights": [1.0] * length}) for length in lengths]
        ours, own = drawn.clone().requires_grad_(), drawn.clone().requires_grad_()
        rows = [row[:length] for row, length in zip(ours, lengths, strict=True)]
        value, _ = get_loss("maxsim", num_hard_negatives=1, **settings)(data, {"token_embeddings": rows})
        (gradient,) = torch.autograd.grad(value, ours)
        chosen = {key: getattr(scoring, one) if isinstance(one, str) else one for key, one in theirs.items()}
        loss = losses.MultiVectorMultipleNegativesRankingLoss(Tokens(), **chosen)  # type: ignore[arg-type]
        columns = zip(torch.nn.functional.normalize(own, dim=-1).chunk(3), mask.long().chunk(3), strict=True)
        answer = loss([{"tokens": tokens, "attention_mask": kept} for tokens, kept in columns])
        (expected,) = torch.autograd.grad(answer, own)
        return float((value - answer).detach().abs()), float((gradient - expected).abs().max())

    return differences


def pooled_by_splade() -> tuple[float, float]:
    """Differences of our vectors over the vocabulary, and of the gradient of hidden states through flops, from theirs."""
    from sentence_transformers.sparse_encoder import losses
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    random = torch.Generator().manual_seed(3)
    lengths = [1 + i % 4 for i in range(2 * PAIRS)]
    hidden = torch.randn(2 * PAIRS, 4, WIDTH, dtype=torch.float64, generator=random)
    weight = torch.randn(30, WIDTH, dtype=torch.float64, generator=random)
    mask = torch.tensor([[t < length for t in range(4)] for length in lengths])
    ours, own = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    vectors = splade_vectors(ours[mask], Head(weight), lengths)
    data = [Datum(ModelInput.from_ints([1]))] * (2 * PAIRS)
    value, _ = get_loss("flops", query_weight=2.0, document_weight=0.5)(data, list(vectors))
    (gradient,) = torch.autograd.grad(value, ours)
    pooled = SpladePooling()({"token_embeddings": own @ weight.T, "attention_mask": mask.long()})["sentence_embedding"]
    flops = losses.FlopsLoss(Tokens()).compute_loss_from_embeddings  # type: ignore[arg-type]
    answer = 2.0 * flops(pooled[:PAIRS]) + 0.5 * flops(pooled[PAIRS:])
    (expected,) = torch.autograd.grad(answer, own)
    return float((value - answer).detach().abs()), float((gradient - expected).abs().max())


WEIGHTS = {"query_weight": 2.0, "document_weight": 0.5}
MULTI = "MultiVectorMultipleNegativesRankingLoss"
SINGLE = "its scores are of float32"
MEAN = {"mean_over_query": True, "scale": 8.0}

CASES: list[Parity] = [
    Parity("flops", "FlopsLoss", PACKAGE, pooled_by_splade, WEIGHTS, 1e-12, 'pooling "splade" beside SpladePooling'),
    Parity("maxsim", MULTI, PACKAGE, late(settings={}), {"num_hard_negatives": 1}, 1e-6, SINGLE),
    Parity(
        "maxsim",
        MULTI,
        PACKAGE,
        late(settings=MEAN, similarity_fct="mean_colbert_scores", scale=8.0),
        {"num_hard_negatives": 1, **MEAN},
        1e-6,
        f"mean_colbert_scores; {SINGLE}",
    ),
]
