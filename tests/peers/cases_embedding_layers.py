"""Losses over layers of an encoder against Sentence Transformers' own, each on its own forward and backward of one BERT."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, adaptive_layer, matryoshka_2d
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_encoder, build_tiny_tokenizer

from .cases_embedding_batches import PACKAGE
from .parity import Parity

#: Of two columns, texts of 1 to 5 tokens.
TEXTS = [[[1 + (7 * i + 3 * t + 50 * column) % 250 for t in range(1 + i % 5)] for i in range(6)] for column in (0, 1)]
GRADED = (0.0, 0.25, 1.0, 0.5, 0.25, -0.75)
#: All layers of the encoder below its last one.
LAYERS = (0, 1)


def between(
    loss: Any, theirs: Callable[[Any, Any], Any], labels: tuple[float, ...] = ()
) -> Callable[[], tuple[float, float]]:
    """Differences of the value, and of the gradient of the encoder's weights. theirs: (losses, model) to their loss.

    labels: one for each row; ours then takes the row's two texts as datums 2i and 2i + 1.
    """

    def differences() -> tuple[float, float]:
        encoder = load_model("tiny-encoder", device="cpu", dtype=torch.float64).train_all_weights()
        places = [(column, i) for column in (0, 1) for i in range(6)]
        if labels:
            places.sort(key=lambda place: place[1])
        data = [
            Datum(ModelInput.from_ints(TEXTS[column][i]), {"label": labels[i]} if labels else {})
            for column, i in places
        ]
        value = Engine(encoder, EngineSettings()).forward_backward(data, loss).metrics["loss:sum"]
        own = _sentence_transformer()
        answer = _their_value(theirs, own, labels)
        answer.backward()
        gradients = {name: parameter.grad for name, parameter in own[0].auto_model.named_parameters()}
        moved = [
            (parameter.grad - gradients[name]).abs().max()
            for name, parameter in encoder.module.named_parameters()
            if parameter.grad is not None
        ]
        return abs(value - float(answer.detach())), float(torch.stack(moved).max())

    return differences


def _sentence_transformer() -> Any:
    """The same encoder, with the mean of its tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        build_tiny_encoder().save_pretrained(folder)
        build_tiny_tokenizer().save_pretrained(folder)
        transformer: Any = Transformer(folder)
    transformer.model = build_tiny_encoder().double()
    return SentenceTransformer(modules=[transformer, Pooling(64, pooling_mode="mean")], device="cpu")


def _their_value(theirs: Callable[[Any, Any], Any], model: Any, labels: tuple[float, ...]) -> Tensor:
    from sentence_transformers.sentence_transformer import losses

    columns = []
    for texts in TEXTS:
        ids, mask = torch.zeros(6, 5, dtype=torch.int64), torch.zeros(6, 5, dtype=torch.int64)
        for i, tokens in enumerate(texts):
            ids[i, : len(tokens)], mask[i, : len(tokens)] = torch.tensor(tokens), 1
        columns.append({"input_ids": ids, "attention_mask": mask})
    return theirs(losses, model)(columns, torch.tensor(labels, dtype=torch.float64) if labels else None)


MNRL = "multiple_negatives_ranking"
ALL = {"layers": LAYERS}
OWN = {"last_layer_weight": 2.0, "prior_layers_weight": 0.5, "kl_temperature": 0.5, "layer_weighting": "log"}
DIMS = {"dims": (64, 16), "weights": (1.0, 0.5)}

CASES: list[Parity] = [
    Parity(
        f"adaptive_layer({MNRL})",
        "AdaptiveLayerLoss(MultipleNegativesRankingLoss)",
        PACKAGE,
        between(
            adaptive_layer(MNRL, **ALL),
            lambda losses, model: losses.AdaptiveLayerLoss(
                model, losses.MultipleNegativesRankingLoss(model), n_layers_per_step=-1
            ),
        ),
        ALL,
        1e-9,
        "values and gradients of a BERT's weights, through the trainer; all layers",
    ),
    Parity(
        "adaptive_layer(cosent)",
        "AdaptiveLayerLoss(CoSENTLoss)",
        PACKAGE,
        between(
            adaptive_layer("cosent", kl_weight=0.25, **ALL, **OWN),
            lambda losses, model: losses.AdaptiveLayerLoss(
                model, losses.CoSENTLoss(model), n_layers_per_step=-1, kl_div_weight=0.25, **OWN
            ),
            GRADED,
        ),
        {**ALL, "kl_weight": 0.25, **OWN},
        1e-9,
        "the same",
    ),
    Parity(
        f"matryoshka_2d({MNRL})",
        "Matryoshka2dLoss(MultipleNegativesRankingLoss)",
        PACKAGE,
        between(
            matryoshka_2d(MNRL, **ALL, **DIMS),
            lambda losses, model: losses.Matryoshka2dLoss(
                model,
                losses.MultipleNegativesRankingLoss(model),
                list(DIMS["dims"]),
                list(DIMS["weights"]),
                n_layers_per_step=-1,
                n_dims_per_step=-1,
            ),
        ),
        {**ALL, **DIMS},
        1e-9,
        "the same, at all lengths",
    ),
]
