"""Embedding losses over whole batches against Sentence Transformers' own classes: directions, guides, teachers, classes, spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .cases_embedding import PAIRS, WIDTH, Identity
from .parity import Parity

PACKAGE = "sentence-transformers"
#: Blocks [B, D] of embeddings, and what every datum carries, by key, to a loss.
Peer = Callable[[list[Tensor], Mapping[str, Tensor]], Tensor]


class Encoder(Identity):
    """`Identity` with what GIST asks of a model and its guide: one tokenizer for both."""

    max_seq_length = 8

    def __init__(self, key: str = "embedding") -> None:
        super().__init__()
        self.key, self.tokenizer = key, build_tiny_tokenizer()

    def __getitem__(self, index: int) -> Encoder:
        """Its modules, of which there is one."""
        return self

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}


def dense(name: str, *, module: str = "sentence_transformer", labels: str = "", **settings: Any) -> Peer:
    """One of Sentence Transformers' losses by the name of its class. labels: the key that its labels are made of, by row."""

    def compute(blocks: list[Tensor], carried: Mapping[str, Tensor]) -> Tensor:
        losses = _losses(module)
        chosen = {key: value(losses) if callable(value) else value for key, value in settings.items()}
        loss = getattr(losses, name)(Identity(), **chosen)
        given = None
        if labels:
            by_block = carried[labels].unflatten(0, (len(blocks), -1))
            given = (
                by_block[0]
                if len(blocks) == 1
                else by_block[1:].T
                if labels == "teacher_score"
                else by_block.transpose(0, 1)
            )
        answer = loss([{"embedding": block} for block in blocks], given)
        return torch.stack(list(answer.values())).sum() if isinstance(answer, dict) else answer

    return compute


def _losses(module: str) -> Any:
    from sentence_transformers import sparse_encoder
    from sentence_transformers.sentence_transformer import losses

    return losses if module == "sentence_transformer" else sparse_encoder.losses


def guided(name: str, **settings: Any) -> Peer:
    """GISTEmbedLoss, or its cached form, whose guide says what the data carries."""

    def compute(blocks: list[Tensor], carried: Mapping[str, Tensor]) -> Tensor:
        guides = carried["guide_embedding"].chunk(len(blocks))
        loss = getattr(_losses("sentence_transformer"), name)(Encoder(), Encoder("guide"), **settings)
        ids = torch.zeros(PAIRS, 1, dtype=torch.int64)
        features = [{"embedding": b, "guide": g, "input_ids": ids} for b, g in zip(blocks, guides, strict=True)]
        return loss(features, None)

    return compute


def in_batch_by_scores(blocks: list[Tensor], carried: Mapping[str, Tensor]) -> Tensor:
    """DistillKLDivLoss once for each query, with every document of the batch as its candidate."""
    cosine = torch.nn.functional.cosine_similarity
    queries, documents = blocks[0], torch.cat(blocks[1:])
    teacher = torch.nn.functional.normalize(carried["teacher_embedding"], dim=1)
    wanted = teacher[: len(queries)] @ teacher[len(queries) :].T
    loss = _losses("sentence_transformer").DistillKLDivLoss(
        Identity(), similarity_fct=lambda a, b: cosine(a, b), student_temperature=1.0, teacher_temperature=0.5
    )
    columns = [queries, *(one.expand(len(queries), -1) for one in documents)]
    return loss([{"embedding": column} for column in columns], wanted)


def splade(blocks: list[Tensor], carried: Mapping[str, Tensor]) -> Tensor:
    """SpladeLoss around the sparse ranking loss, with both regularizers."""
    losses = _losses("sparse_encoder")
    ranking = losses.SparseMultipleNegativesRankingLoss(Identity())
    loss = losses.SpladeLoss(Identity(), ranking, document_regularizer_weight=0.03, query_regularizer_weight=0.05)
    return torch.stack(list(loss([{"embedding": block} for block in blocks]).values())).sum()


def between(
    loss: Any, peer: Peer, *, blocks: int, carries: Sequence[str] = (), positive: bool = False
) -> Callable[[], tuple[float, float]]:
    """The largest differences over random embeddings [blocks, B, D]; every datum carries the keys `carries`.

    positive: about half of the coordinates are 0, the others above, as SPLADE's are.
    """

    def differences() -> tuple[float, float]:
        random = torch.Generator().manual_seed(1)
        drawn = torch.randn(blocks, PAIRS, WIDTH, dtype=torch.float64, generator=random)
        drawn = drawn.relu() if positive else drawn
        carried = {key: _carried(key, blocks * PAIRS, random) for key in carries}
        data = [
            Datum(ModelInput.from_ints([1]), {key: values[i] for key, values in carried.items()})
            for i in range(blocks * PAIRS)
        ]
        ours = drawn.clone().requires_grad_()
        value, _ = loss(data, list(ours.flatten(0, 1)))
        (gradient,) = torch.autograd.grad(value, ours)
        own = drawn.clone().requires_grad_()
        answer = peer(
            list(own.unbind()), {key: v.double() if v.is_floating_point() else v for key, v in carried.items()}
        )
        answer.backward()  # the cached losses go backward from a hook
        assert own.grad is not None
        wrong = (gradient - own.grad).abs()
        if positive:  # SPLADE's relu passes nothing where it gave 0
            wrong = wrong[drawn > 0]
        return float((value - answer).detach().abs()), float(wrong.max())

    return differences


def _carried(key: str, count: int, random: torch.Generator) -> Tensor:
    if key == "class_id":
        return torch.arange(count) % 2
    shape = (count,) if key == "teacher_score" else (count, WIDTH)
    return torch.randn(shape, generator=random)


def case(name: str, peer: str, compute: Peer, **options: Any) -> Parity:
    """A comparison of the loss `name` under `settings`."""
    settings, note, tolerance = options.pop("settings", {}), options.pop("note", ""), options.pop("tolerance", 1e-12)
    loss = options.pop("loss", None) or get_loss(name, **settings)
    return Parity(name, peer, PACKAGE, between(loss, compute, **options), settings, tolerance, note)


MNRL = "MultipleNegativesRankingLoss"
FULL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
FURTHER = {"query_to_query": True, "document_to_query": True, "document_to_document": True}
GUIDE, TEACHER, SCORES, CLASSES = ("guide_embedding",), ("teacher_embedding",), ("teacher_score",), ("class_id",)


def of_classes() -> list[Parity]:
    """The four losses over the triplets of a batch, by both distances."""
    names = {
        "batch_hard_triplet": "BatchHardTripletLoss",
        "batch_hard_soft_margin_triplet": "BatchHardSoftMarginTripletLoss",
        "batch_all_triplet": "BatchAllTripletLoss",
        "batch_semi_hard_triplet": "BatchSemiHardTripletLoss",
    }
    by_cosine = {"distance_metric": lambda losses: losses.BatchHardTripletLossDistanceFunction.cosine_distance}
    cases: list[Parity] = []
    for name, theirs in names.items():
        margin = {} if "soft" in name else {"margin": 0.5}
        own = dense(theirs, labels="class_id")
        cases.append(
            case(name, theirs, own, blocks=1, carries=CLASSES, tolerance=1e-6, note="its distances are of float32")
        )
        cosine = dense(theirs, labels="class_id", **by_cosine, **margin)
        cases.append(
            case(
                name,
                theirs,
                cosine,
                blocks=1,
                carries=CLASSES,
                settings={"distance": "cosine", **margin},
                tolerance=1e-6,
            )
        )
    return cases


CASES: list[Parity] = [
    case(
        "multiple_negatives_ranking",
        MNRL,
        dense(MNRL, directions=FULL),
        blocks=3,
        settings={"num_hard_negatives": 1, **FURTHER},
        note="all four directions, joint",
    ),
    case(
        "multiple_negatives_ranking",
        MNRL,
        dense(MNRL, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction", scale=4.0),
        blocks=2,
        settings={"document_to_query": True, "partition": "per_direction", "scale": 4.0},
    ),
    *(
        case(
            "multiple_negatives_ranking",
            MNRL,
            dense(MNRL, hardness_mode=hardness, hardness_strength=5.0),
            blocks=4,
            settings={"num_hard_negatives": 2, "hardness": hardness, "hardness_strength": 5.0},
        )
        for hardness in ("in_batch_negatives", "hard_negatives", "all_negatives")
    ),
    case("gist", "GISTEmbedLoss", guided("GISTEmbedLoss"), blocks=2, carries=GUIDE),
    case(
        "gist",
        "GISTEmbedLoss",
        guided("GISTEmbedLoss", temperature=0.5, margin=0.1, margin_strategy="relative", contrast_positives=False),
        blocks=3,
        carries=GUIDE,
        settings={
            "temperature": 0.5,
            "margin": 0.1,
            "margin_strategy": "relative",
            "contrast_positives": False,
            "num_hard_negatives": 1,
        },
    ),
    case(
        "gist",
        "CachedGISTEmbedLoss",
        guided("CachedGISTEmbedLoss", temperature=0.5, margin=0.2, contrast_anchors=False, mini_batch_size=2),
        blocks=4,
        carries=GUIDE,
        settings={"temperature": 0.5, "margin": 0.2, "contrast_queries": False, "num_hard_negatives": 2},
        note="mini-batches of 2; ours caches in the trainer, whatever the loss",
    ),
    case(
        "embedding_distill",
        "EmbedDistillLoss",
        dense("EmbedDistillLoss", labels="teacher_embedding"),
        blocks=2,
        carries=TEACHER,
    ),
    case(
        "embedding_distill",
        "EmbedDistillLoss",
        dense("EmbedDistillLoss", labels="teacher_embedding", distance_metric="l2"),
        blocks=2,
        carries=TEACHER,
        settings={"distance": "l2"},
    ),
    case(
        "embedding_distill",
        "MSELoss",
        dense("MSELoss", labels="teacher_embedding"),
        blocks=1,
        carries=TEACHER,
        settings={"distance": "mse"},
    ),
    case(
        "score_kl",
        "DistillKLDivLoss",
        dense("DistillKLDivLoss", labels="teacher_score", temperature=2.0, teacher_temperature=0.5),
        blocks=4,
        carries=SCORES,
        settings={"num_hard_negatives": 2, "temperature": 2.0, "teacher_temperature": 0.5},
    ),
    case(
        "in_batch_kl",
        "DistillKLDivLoss",
        in_batch_by_scores,
        blocks=2,
        carries=TEACHER,
        settings={"temperature": 1.0, "teacher_temperature": 0.5},
        note="each query with all documents as its candidates",
    ),
    *of_classes(),
    case("gor", "GlobalOrthogonalRegularizationLoss", dense("GlobalOrthogonalRegularizationLoss"), blocks=2),
    case(
        "gor",
        "GlobalOrthogonalRegularizationLoss",
        dense("GlobalOrthogonalRegularizationLoss", mean_weight=0.5, second_moment_weight=2.0, aggregation="sum"),
        blocks=3,
        settings={"mean_weight": 0.5, "second_moment_weight": 2.0, "aggregation": "sum", "num_hard_negatives": 1},
    ),
    case(
        "multiple_negatives_ranking + flops",
        "SpladeLoss",
        splade,
        blocks=3,
        loss=get_loss("multiple_negatives_ranking", similarity="dot", scale=1.0, num_hard_negatives=1)
        + get_loss("flops", query_weight=0.05, document_weight=0.03, num_hard_negatives=1),
        positive=True,
        note="of SparseMultipleNegativesRankingLoss, with both FlopsLosses",
    ),
]
