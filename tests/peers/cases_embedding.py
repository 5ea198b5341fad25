"""Embedding losses against Sentence Transformers' own classes and transformers' SigLIP, on embeddings handed to a stub model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss, matryoshka

from .parity import Parity

PAIRS, WIDTH = 6, 8
#: Labels that float32 holds exactly.
BINARY = (1.0, 0.0, 0.0, 1.0, 1.0, 0.0)
GRADED = (0.0, 0.25, 1.0, 0.5, 0.25, -0.75)

#: Blocks [B, D] of embeddings, and one label a row where there are labels, to a loss.
Peer = Callable[[list[Tensor], Tensor | None], Tensor]


class Identity(torch.nn.Module):
    """A model that says what it is given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        return WIDTH


def theirs(name: str, *, dims: Sequence[int] = (), weights: Sequence[float] = (), **settings: Any) -> Peer:
    """One of Sentence Transformers' losses by the name of its class, within its MatryoshkaLoss where there are dims.

    A setting like "TripletDistanceMetric.COSINE" is looked up among its losses.
    """

    def compute(blocks: list[Tensor], labels: Tensor | None) -> Tensor:
        from sentence_transformers.sentence_transformer import losses

        model = Identity()
        arguments = {key: _looked_up(losses, value) for key, value in settings.items()}
        loss = getattr(losses, name)(model, **arguments)
        if dims:
            loss = losses.MatryoshkaLoss(model, loss, list(dims), list(weights))
        return loss([{"embedding": block} for block in blocks], labels)

    return compute


def _looked_up(module: Any, value: Any) -> Any:
    if not isinstance(value, str) or "." not in value:
        return value
    holder, member = value.split(".")
    return getattr(getattr(module, holder), member)


def both_views(blocks: list[Tensor], labels: Tensor | None) -> Tensor:
    """NT-Xent from its halves, each block of views in turn as the queries."""
    half = theirs("MultipleNegativesRankingLoss", scale=1 / 0.07, directions=("query_to_doc", "query_to_query"))
    return (half(blocks, labels) + half(blocks[::-1], labels)) / 2


def siglip_of_transformers(blocks: list[Tensor], labels: Tensor | None) -> Tensor:
    """SiglipModel.forward over two towers that say what they are given: our queries as texts, our documents as images."""
    from transformers.models.siglip.modeling_siglip import SiglipModel

    texts, images = blocks
    model: Any = SimpleNamespace(
        config=SimpleNamespace(return_dict=True),
        text_model=lambda **_: SimpleNamespace(pooler_output=texts),
        vision_model=lambda **_: SimpleNamespace(pooler_output=images),
        logit_scale=torch.tensor(10.0, dtype=torch.float64).log(),
        logit_bias=torch.tensor(-10.0, dtype=torch.float64),
    )
    return SiglipModel.forward(model, return_loss=True).loss  # type: ignore[return-value]


def between(
    loss: Any, peer: Peer, *, blocks: int, labels: Sequence[float] = (), key: str = "label", interleaved: bool = False
) -> Callable[[], tuple[float, float]]:
    """The largest differences over random embeddings [blocks, B, D].

    labels: one per row; our datums carry theirs under `key`. interleaved: ours takes row i of both blocks as datums 2i, 2i+1.
    """

    def differences() -> tuple[float, float]:
        drawn = torch.randn(blocks, PAIRS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        places = [(block, i) for block in range(blocks) for i in range(PAIRS)]
        if interleaved:
            places.sort(key=lambda place: place[1])
        data = [Datum(ModelInput.from_ints([1]), _carried(labels, key, block, i)) for block, i in places]
        ours = drawn.clone().requires_grad_()
        value, _ = loss(data, [ours[place] for place in places])
        (gradient,) = torch.autograd.grad(value, ours)
        own = drawn.clone().requires_grad_()
        answer = peer(list(own.unbind()), torch.tensor(labels, dtype=torch.float64) if labels else None)
        (expected,) = torch.autograd.grad(answer, own)
        return float((value - answer).detach().abs()), float((gradient - expected).abs().max())

    return differences


def _carried(labels: Sequence[float], key: str, block: int, row: int) -> dict[str, float]:
    if not labels:
        return {}
    # A teacher's score belongs to a document: the negatives' is 0, so that its margin is the label.
    return {key: labels[row] if key == "label" or block == 1 else 0.0}


def case(name: str, peer: str, compute: Peer, package: str = "sentence-transformers", **options: Any) -> Parity:
    """A comparison of the loss `name` under `settings`."""
    settings, note, tolerance = options.pop("settings", {}), options.pop("note", ""), options.pop("tolerance", 1e-12)
    differences = between(get_loss(name, **settings), compute, **options)
    return Parity(name, peer, package, differences, settings, tolerance, note)


MNRL = "MultipleNegativesRankingLoss"
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
LENGTHS, SHARES = (8, 4, 2), (1.0, 0.5, 0.25)

CASES: list[Parity] = [
    case("info_nce", MNRL, theirs(MNRL, scale=50.0, **SYMMETRIC), blocks=2, note="scale 50, both directions apart"),
    case(
        "info_nce",
        MNRL,
        theirs(MNRL, scale=4.0, **SYMMETRIC),
        blocks=3,
        settings={"temperature": 0.25, "num_extra_negatives": PAIRS},
        note="one column of hard negatives is as many extra negatives",
    ),
    case("multiple_negatives_ranking", MNRL, theirs(MNRL), blocks=2),
    case("multiple_negatives_ranking", MNRL, theirs(MNRL), blocks=4, settings={"num_hard_negatives": 2}),
    case("ntxent", MNRL, both_views, blocks=2, note="the mean of its halves, with query_to_query beside query_to_doc"),
    case("siglip", "SiglipModel", siglip_of_transformers, "transformers", blocks=2),
    case(
        "triplet",
        "TripletLoss",
        theirs("TripletLoss"),
        blocks=3,
        settings={"margin": 5.0},
        note="margin 5, its default",
    ),
    case(
        "triplet",
        "TripletLoss",
        theirs("TripletLoss", distance_metric="TripletDistanceMetric.COSINE", triplet_margin=0.25),
        blocks=3,
        settings={"distance": "cosine", "margin": 0.25},
    ),
    case("margin_mse", "MarginMSELoss", theirs("MarginMSELoss"), blocks=3, labels=GRADED, key="teacher_score"),
    case(
        "contrastive_pairs",
        "ContrastiveLoss",
        theirs("ContrastiveLoss"),
        blocks=2,
        labels=BINARY,
        interleaved=True,
    ),
    case(
        "contrastive_pairs",
        "ContrastiveLoss",
        theirs("ContrastiveLoss", margin=1.5),
        blocks=2,
        labels=BINARY,
        interleaved=True,
        settings={"margin": 1.5},
    ),
    case(
        "contrastive_pairs",
        "ContrastiveLoss",
        theirs("ContrastiveLoss", distance_metric="SiameseDistanceMetric.EUCLIDEAN", margin=5.0),
        blocks=2,
        labels=BINARY,
        interleaved=True,
        settings={"distance": "euclidean", "margin": 5.0},
        tolerance=1e-5,
        note="theirs adds 1e-6 to every coordinate's difference",
    ),
    case(
        "cosine_similarity",
        "CosineSimilarityLoss",
        theirs("CosineSimilarityLoss"),
        blocks=2,
        labels=GRADED,
        interleaved=True,
    ),
    case("cosent", "CoSENTLoss", theirs("CoSENTLoss"), blocks=2, labels=GRADED, interleaved=True),
    case("angle", "AnglELoss", theirs("AnglELoss"), blocks=2, labels=GRADED, interleaved=True),
    Parity(
        "matryoshka(multiple_negatives_ranking)",
        f"MatryoshkaLoss({MNRL})",
        "sentence-transformers",
        between(
            matryoshka("multiple_negatives_ranking", dims=LENGTHS, weights=SHARES),
            theirs(MNRL, dims=LENGTHS, weights=SHARES),
            blocks=2,
        ),
        {"dims": LENGTHS, "weights": SHARES},
        1e-12,
    ),
    Parity(
        "matryoshka(cosent)",
        "MatryoshkaLoss(CoSENTLoss)",
        "sentence-transformers",
        between(
            matryoshka("cosent", dims=LENGTHS, weights=SHARES),
            theirs("CoSENTLoss", dims=LENGTHS, weights=SHARES),
            blocks=2,
            labels=GRADED,
            interleaved=True,
        ),
        {"dims": LENGTHS, "weights": SHARES},
        1e-12,
    ),
]
