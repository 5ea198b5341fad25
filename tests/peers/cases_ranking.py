"""Ranking losses against Sentence Transformers' losses for cross-encoders, on scores that a stub model hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss

from .parity import Parity

#: Sizes of the lists, and labels that float32 holds exactly; in the second kind none are equal within a list.
SIZES = (4, 1, 3, 5)
GRADES = (2.0, 0.0, 1.0, 0.0, 3.0, 0.0, 1.0, 0.0, 0.0, 2.0, 2.0, 1.0, 4.0)
ORDERED = (1.0, 4.0, 2.5, 0.0, 3.0, 0.5, 2.0, 1.0, 0.0, 4.0, 1.0, 3.0, 2.0)
BINARY = (1.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.25, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
#: Lists of one size: a positive first, then its negatives.
QUERIES, CANDIDATES = 3, 4
TEACHER = (2.0, 0.5, -1.0, 0.25, 1.5, 1.75, 0.0, -0.5, 3.0, 0.0, 1.0, 2.0)


def stub(scores: Tensor, outputs: int = 1) -> Any:
    """A CrossEncoder whose score of the documents "0", "1", ... are those given, [documents], or [queries, documents]."""
    from sentence_transformers import CrossEncoder

    def preprocess(self: Any, pairs: Any, **_: Any) -> dict[str, Tensor]:
        return {"pairs": torch.tensor([[int(query), int(document)] for query, document in pairs])}

    def forward(self: Any, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        queries, documents = features["pairs"].unbind(1)
        given = scores[documents] if scores.ndim == 1 or outputs > 1 else scores[queries, documents]
        return {"scores": given if outputs > 1 else given.unsqueeze(1)}

    members = {"__init__": torch.nn.Module.__init__, "preprocess": preprocess, "forward": forward}
    members |= {"num_labels": outputs, "device": torch.device("cpu")}
    return type("Stub", (CrossEncoder,), members)()  # some of the losses ask for the type


#: (scores, labels) to their loss; scores in the order of our datums.
Peer = Callable[[Tensor, Sequence[float]], Tensor]


def made(name: str, model: Any, settings: dict[str, Any]) -> Any:
    """One of their losses by the name of its class, a scheme by the name of its own."""
    from sentence_transformers.cross_encoder import losses

    own = {key: getattr(losses, value)() if str(value).endswith("Scheme") else value for key, value in settings.items()}
    own = {key: torch.nn.Sigmoid() if value == "sigmoid" else value for key, value in own.items()}
    return getattr(losses, name)(model, **own)


def pairs(name: str, **settings: Any) -> Peer:
    """A loss over single pairs of query and document."""

    def compute(scores: Tensor, labels: Sequence[float]) -> Tensor:
        documents = [str(i) for i in range(len(scores))]
        return made(name, stub(scores), settings)([["0"] * len(scores), documents], torch.tensor(labels))

    return compute


def ragged(name: str, **settings: Any) -> Peer:
    """A loss over lists of documents of different lengths."""

    def compute(scores: Tensor, labels: Sequence[float]) -> Tensor:
        documents = [[str(int(i)) for i in own] for own in torch.arange(len(scores)).split(list(SIZES))]
        queries = [str(i) for i in range(len(SIZES))]
        of_lists = list(torch.tensor(labels).split(list(SIZES)))
        return made(name, stub(scores), settings)([queries, documents], of_lists)

    return compute


def columns(name: str, *, with_labels: bool = False, **settings: Any) -> Peer:
    """A loss over a query, a positive and negatives, whose other candidates are the batch's: every query meets every document."""

    def compute(scores: Tensor, labels: Sequence[float]) -> Tensor:
        table = scores if with_labels else scores.reshape(QUERIES, -1)
        documents = [[str(q * CANDIDATES + c) for q in range(QUERIES)] for c in range(CANDIDATES)]
        given = list(torch.tensor(labels).reshape(QUERIES, CANDIDATES)) if with_labels else None
        return made(name, stub(table), settings)([[str(q) for q in range(QUERIES)], *documents], given)

    return compute


def classes(scores: Tensor, labels: Sequence[float]) -> Tensor:
    """Their cross-entropy over a head of several numbers: those of a pair are our group."""
    table = scores.reshape(QUERIES, CANDIDATES)
    which = torch.tensor(labels).reshape(QUERIES, CANDIDATES).argmax(1)
    documents = [str(i) for i in range(QUERIES)]
    return made("CrossEntropyLoss", stub(table, CANDIDATES), {})([documents, documents], which)


def between(
    loss: Any,
    peer: Peer,
    labels: Sequence[float],
    *,
    sizes: Sequence[int] = SIZES,
    divisor: float = 1.0,
    more: dict[str, Sequence[float]] | None = None,
) -> Callable[[], tuple[float, float]]:
    """The largest differences over random scores. divisor: of our sum over lists. more: other numbers per datum."""

    def differences() -> tuple[float, float]:
        count = sum(sizes)
        drawn = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        group = [g for g, size in enumerate(sizes) for _ in range(size)]
        given = {"label": labels, "group": group, **(more or {})}
        data = [
            Datum(
                ModelInput.from_ints([1, 2]),
                {"target_tokens": [1, 2], "weights": [0.0, 1.0]} | {k: v[i] for k, v in given.items()},
            )
            for i in range(count)
        ]
        ours = drawn.clone().requires_grad_()
        outputs = [torch.stack([one.new_zeros(()), one]) for one in ours]
        value = loss(data, {"values": outputs})[0] / divisor
        (gradient,) = torch.autograd.grad(value, ours)
        own = drawn.clone().requires_grad_()
        answer = peer(own, labels)
        answer.backward()  # their cached loss has its gradient in a hook
        assert own.grad is not None
        return float((value - answer).detach().abs()), float((gradient - own.grad).abs().max())

    return differences


def case(name: str, peer: str, compute: Peer, labels: Sequence[float] = GRADES, **options: Any) -> Parity:
    """A comparison of the loss `name` under `settings`."""
    settings, note, tolerance = options.pop("settings", {}), options.pop("note", ""), options.pop("tolerance", 1e-12)
    differences = between(get_loss(name, **settings), compute, labels, **options)
    return Parity(name, peer, "sentence-transformers", differences, settings, tolerance, note)


SINGLE = 2e-6
IN_SINGLE = "theirs is in float32"
#: All documents are candidates of every query; a query's own positive is its first.
EVERY = [float(d == q * CANDIDATES) for q in range(QUERIES) for d in range(QUERIES * CANDIDATES)]
FIRST = [float(d == 0) for _ in range(QUERIES) for d in range(CANDIDATES)]
SQUARE = {"sizes": [CANDIDATES] * QUERIES}


def compared(labels: Sequence[float], *, all_pairs: bool = False) -> int:
    """How many pairs of the lists are compared, by which theirs is divided."""
    of_lists = torch.tensor(labels).split(list(SIZES))
    return sum(int((y[:, None] > y).sum()) if not all_pairs else len(y) ** 2 for y in of_lists)


def divided(name: str, peer: str, scheme: str = "", *, all_pairs: bool = False, **settings: Any) -> Parity:
    """A loss over pairs: our sum, divided by the number of pairs."""
    chosen = {key: value for key, value in settings.items() if key in ("k", "sigma")}
    chosen |= {"weighting_scheme": scheme} if scheme else {}
    chosen |= {"reduction_log": settings["log_base"]} if "log_base" in settings else {}
    return case(
        name,
        peer,
        ragged(peer, **chosen),
        settings={"reduction": "sum", **settings},
        divisor=compared(GRADES, all_pairs=all_pairs),
        tolerance=SINGLE,
        note=f"our sum over lists divided by the number of pairs; {IN_SINGLE}",
    )


MNRL = "MultipleNegativesRankingLoss"
CASES: list[Parity] = [
    case(
        "rank_bce", "BinaryCrossEntropyLoss", pairs("BinaryCrossEntropyLoss"), BINARY, tolerance=SINGLE, note=IN_SINGLE
    ),
    case(
        "rank_bce",
        "BinaryCrossEntropyLoss",
        pairs("BinaryCrossEntropyLoss", pos_weight=torch.tensor(3.0)),
        BINARY,
        settings={"positive_weight": 3.0},
        tolerance=SINGLE,
        note=IN_SINGLE,
    ),
    case("rank_mse", "MSELoss", pairs("MSELoss"), ORDERED),
    case("rank_mse", "MSELoss", pairs("MSELoss", activation_fn="sigmoid"), BINARY, settings={"activation": "sigmoid"}),
    case("rank_softmax", "CrossEntropyLoss", classes, FIRST, **SQUARE, note="a pair's classes are a group"),
    case("rank_mnrl", MNRL, columns(MNRL, num_negatives=None), EVERY, sizes=[QUERIES * CANDIDATES] * QUERIES),
    case(
        "rank_mnrl",
        f"Cached{MNRL}",
        columns(f"Cached{MNRL}", num_negatives=None, mini_batch_size=5),
        EVERY,
        sizes=[QUERIES * CANDIDATES] * QUERIES,
        note="five pairs at a time",
    ),
    case(
        "rank_mnrl",
        MNRL,
        columns(MNRL, num_negatives=None, activation_fn=None, scale=2.0),
        EVERY,
        sizes=[QUERIES * CANDIDATES] * QUERIES,
        settings={"activation": "none", "scale": 2.0},
    ),
    case(
        "rank_margin_mse",
        "MarginMSELoss",
        columns("MarginMSELoss", with_labels=True),
        TEACHER,
        **SQUARE,
        more={"is_positive": FIRST},
    ),
    case("listnet", "ListNetLoss", ragged("ListNetLoss"), tolerance=SINGLE, note=IN_SINGLE),
    case(
        "list_mle",
        "ListMLELoss",
        ragged("ListMLELoss", respect_input_order=False),
        ORDERED,
        tolerance=SINGLE,
        note=f"no equal labels; {IN_SINGLE}",
    ),
    case(
        "plist_mle",
        "PListMLELoss",
        ragged("PListMLELoss", respect_input_order=False),
        ORDERED,
        tolerance=SINGLE,
        note=f"no equal labels; {IN_SINGLE}",
    ),
    case("adr_mse", "ADRMSELoss", ragged("ADRMSELoss"), tolerance=SINGLE, note=IN_SINGLE),
    case(
        "adr_mse",
        "ADRMSELoss",
        ragged("ADRMSELoss", alpha=3.0),
        settings={"alpha": 3.0},
        tolerance=SINGLE,
        note=IN_SINGLE,
    ),
    divided("ranknet", "RankNetLoss"),
    divided("ranknet", "RankNetLoss", sigma=2.0, log_base="natural"),
    divided("lambda_loss", "LambdaLoss"),
    divided("lambda_loss", "LambdaLoss", "NoWeightingScheme", weighting="none"),
    divided("lambda_loss", "LambdaLoss", "NDCGLoss1Scheme", weighting="ndcg1", all_pairs=True),
    divided("lambda_loss", "LambdaLoss", "NDCGLoss2Scheme", weighting="ndcg2"),
    divided("lambda_loss", "LambdaLoss", "LambdaRankScheme", weighting="lambda_rank"),
]
