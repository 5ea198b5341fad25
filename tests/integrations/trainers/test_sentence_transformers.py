"""sentence-transformers' Trainer with losses of ours: the gradient that reaches its optimizer, and its own losses beside ours.

The wanted gradient is of datums: each text alone through the model, and one call of the loss for each micro-batch; a step is the
mean of its micro-batches, as for every loss of sentence-transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import LossbookError
from lossbook.integrations.sentence_transformers import EmbeddingLoss
from lossbook.losses import LossLike, matryoshka
from lossbook.trainer.model.tiny import build_tiny_encoder, build_tiny_tokenizer

from .reference import assert_same, catcher, gradients, settings

pytestmark = pytest.mark.slow

TEXTS = ["one", "a bird", "three", "the sea is wide", "go", "winter", "bread and salt", "yes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("encoder")
    build_tiny_encoder().save_pretrained(where)
    build_tiny_tokenizer().save_pretrained(where)
    return where


def encoder(folder: Path) -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").double()


def rows(columns: int, labels: list[Any] | None) -> datasets.Dataset:
    texts = {f"text{c}": [f"{text} {c}" * (1 + (i + c) % 2) for i, text in enumerate(TEXTS)] for c in range(columns)}
    return datasets.Dataset.from_dict(texts if labels is None else {**texts, "label": labels})


def columns_of(features: Any) -> list[list[list[int]]]:
    """The token ids of each text, column by column, without padding."""
    return [
        [ids[kept == 1].tolist() for ids, kept in zip(one["input_ids"], one["attention_mask"], strict=True)]
        for one in features
    ]


def embedded(model: Any, ids: list[int]) -> Tensor:
    one = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return model(one)["sentence_embedding"][0]


GRADE = [0.1, 0.9, 0.3, 1.0, 0.0, 0.6, 0.2, 0.8]
SCORES = [[grade, 1.0 - grade] for grade in GRADE]
VECTORS = [[1.0, grade, -grade] for grade in GRADE]
WIDE = [[grade - (i % 3) for i in range(64)] for grade in GRADE]
LAYOUTS = [
    pytest.param(get_loss("multiple_negatives_ranking"), 2, None, "blocks", id="queries, then documents"),
    pytest.param(get_loss("multiple_negatives_ranking", num_hard_negatives=1), 3, None, "blocks", id="hard negatives"),
    pytest.param(get_loss("info_nce"), 2, None, "blocks", id="both directions"),
    pytest.param(get_loss("triplet"), 3, None, "blocks", id="triplets"),
    pytest.param(get_loss("margin_mse"), 3, SCORES, "blocks", id="a teacher's scores"),
    pytest.param(
        get_loss("gist", temperature=0.1),
        2,
        [[v, w] for v, w in zip(VECTORS, VECTORS[::-1], strict=True)],
        "blocks",
        id="a guide",
    ),
    pytest.param(get_loss("embedding_distill", distance="l2"), 2, WIDE, "blocks", id="a teacher's vectors"),
    pytest.param(get_loss("cosine_similarity"), 2, GRADE, "pairs", id="pairs"),
    pytest.param(get_loss("cosent") + 0.5 * get_loss("angle"), 2, GRADE, "pairs", id="a mixture over pairs"),
    pytest.param(matryoshka("multiple_negatives_ranking", dims=[32, 64]), 2, None, "blocks", id="matryoshka"),
]


def as_datums(texts: list[list[list[int]]], labels: Any, layout: str, key: str | None) -> list[Datum]:
    """A micro-batch in the layout that the loss's docstring asks for."""
    columns, count = len(texts), len(texts[0])
    places = [(c, i) for c in range(columns) for i in range(count)]
    if layout == "pairs":
        places = [(c, i) for i in range(count) for c in range(columns)]
    data = []
    for c, i in places:
        inputs: dict[str, Any] = {}
        if key is not None and key.endswith("_embedding"):
            inputs = {key: labels[i] if labels[i].ndim == 1 else labels[i][c]}
        elif key == "label":
            inputs = {key: float(labels[i])}
        elif key is not None:
            inputs = {key: 0.0 if c == 0 else float(labels[i][c - 1])}
        data.append(Datum(ModelInput.from_ints(texts[c][i]), inputs))
    return data


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(("loss", "columns", "labels", "layout"), LAYOUTS)
def test_a_step_is_the_mean_of_its_micro_batches(
    folder: Path, tmp_path: Path, loss: LossLike, columns: int, labels: Any, layout: str, accumulation: int
) -> None:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = encoder(folder)
    ours = EmbeddingLoss(model, loss)
    seen: list[Any] = []
    ours.register_forward_pre_hook(lambda module, given: seen.append((columns_of(given[0]), given[1])))
    caught = catcher()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**settings(tmp_path, accumulation)),
        train_dataset=rows(columns, labels),
        loss=ours,
        callbacks=[caught],
    )
    trainer.train()
    alone = encoder(folder)
    for texts, its in seen:
        data = as_datums(texts, its, layout, ours.reads)
        value, _ = loss(data, {"embeddings": [embedded(alone, one.model_input.to_ints()) for one in data]})
        (value / len(seen)).backward()
    assert len(seen) == accumulation
    assert_same(caught.steps[0], gradients(alone))


@pytest.mark.parametrize(
    ("ours", "their", "columns", "labels"),
    [
        pytest.param("multiple_negatives_ranking", "MultipleNegativesRankingLoss", 2, None, id="ranking"),
        pytest.param("cosine_similarity", "CosineSimilarityLoss", 2, GRADE, id="cosine"),
        pytest.param("cosent", "CoSENTLoss", 2, GRADE, id="cosent"),
        pytest.param("margin_mse", "MarginMSELoss", 3, SCORES, id="margins"),
        pytest.param("embedding_distill", "EmbedDistillLoss", 2, WIDE, id="one teacher for both columns"),
        pytest.param("batch_hard_soft_margin_triplet", "BatchHardSoftMarginTripletLoss", 1, [0, 1] * 4, id="classes"),
    ],
)
def test_it_is_the_number_of_the_loss_of_that_name_in_sentence_transformers(
    folder: Path, ours: str, their: str, columns: int, labels: Any
) -> None:
    from sentence_transformers.sentence_transformer import losses

    model = encoder(folder).eval()
    data = rows(columns, None)
    features = [model.preprocess(data[f"text{c}"][:]) for c in range(columns)]
    given = None if labels is None else torch.tensor(labels)
    given = given.double() if given is not None and given.is_floating_point() else given
    copies = [[dict(one) for one in features] for _ in range(2)]
    wanted = getattr(losses, their)(model)(copies[0], given)
    wanted = sum(wanted.values()) if isinstance(wanted, dict) else wanted
    torch.testing.assert_close(EmbeddingLoss(model, ours)(copies[1], given), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "columns", "labels", "message"),
    [
        pytest.param("cosent", 2, None, "cosent reads 'label'", id="no labels"),
        pytest.param("ntxent", 2, GRADE, "ntxent reads no labels", id="labels that nothing reads"),
        pytest.param("margin_mse", 3, GRADE, r"labels are \[B, 2\]", id="one score for two texts"),
        pytest.param("triplet", 2, None, "triplet takes rows of 3|multiple of 3", id="two texts for three"),
        pytest.param(
            "cosine_similarity", 3, GRADE, "cosine_similarity takes rows of 2 texts, not 3", id="three texts for two"
        ),
        pytest.param("dft", 2, None, "dft reads 'logprobs'", id="no embedding loss"),
    ],
)
def test_wrong_rows_are_refused_in_one_line(folder: Path, loss: str, columns: int, labels: Any, message: str) -> None:
    model = encoder(folder)
    data = rows(columns, None)
    with pytest.raises(LossbookError, match=message) as refused:
        EmbeddingLoss(model, loss)(
            [model.preprocess(data[f"text{c}"][:]) for c in range(columns)],
            None if labels is None else torch.tensor(labels, dtype=torch.float64),
        )
    assert "\n" not in str(refused.value)
