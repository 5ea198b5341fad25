"""Embeddings: an encoder learns to place texts that belong together close together, with other rows as negatives.

    python examples/docstring_pairs.py && lossbook train embed --config examples/embed.toml
    lossbook train embed --model BAAI/bge-small-en-v1.5 --data pairs.jsonl --held-out 200 --loss info_nce
    lossbook train embed --data triplets.jsonl --loss multiple_negatives_ranking --matryoshka-dimensions 64 128 384
    lossbook train embed --data scored.jsonl --loss cosent --no-all-weights --rank 8
    lossbook train embed --data pairs.jsonl --loss gist --guide BAAI/bge-base-en-v1.5 --also gor 0.1
    lossbook train embed --model distilbert/distilbert-base-uncased --data pairs.jsonl --pooling splade \
        --loss multiple_negatives_ranking --loss-config similarity dot scale 1.0 --also flops 3e-5

Data: JSON Lines of {"query", "positive"} and optionally "negative" or "negatives", "label", "scores". Rows that share a query
or a positive are never each other's negatives. All weights are trained; --no-all-weights for LoRA. `model/` in the run's folder
is the encoder, which transformers and Sentence Transformers load.

What to watch. `held_out_recall_at_1` is the fraction of held-out queries whose own document is the nearest of all: it must
rise. `in_batch_recall_at_1` is the same within a training batch, and much easier; where it reaches 1 the batch has nothing left
to teach: make it larger (a batch that does not fit in memory is computed twice, `forward_passes` 2) or add hard negatives.
`positive_similarity` and `negative_similarity` must stay apart: when they meet, the embeddings have collapsed, so lower the
learning rate. `masked_duplicates` counts candidates left out because they also belong to the query.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..datums.errors import ConfigError
from ..datums.files.sources import read_rows
from ..losses.loss.loss import LossLike
from .embeddings.batches import (
    PairBatches,
    PairLayout,
    embedding_loss,
    takes_duplicates_for_negatives,
    with_layers_of_step,
)
from .embeddings.data import Encoded, Side, Texts, encode, grouped, held_apart, negatives_used, read_texts
from .embeddings.guide import Vectors, check_guide, vectors_of
from .embeddings.retrieval import Retrieval, vectors_by_layer
from .embeddings.sentence_encoder import EncoderSettings, encoder_settings, find_minilm, write_settings
from .loop import Loop, begin, finish, introduce
from .run.configs import adam_params, torch_dtype
from .run.interrupts import restarted
from .run.names import MODEL, REPORT
from .settings.embed import EmbedConfig

#: Most tokens of a text where neither the settings nor the model's files say.
DEFAULT_MAX_LENGTH = 256
#: The metrics in the progress display.
SHOWN = ("loss", "in_batch_recall_at_1", "grad_norm")


@restarted
def main(config: EmbedConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = loss_of(config)
    if config.model == "minilm":
        config = config.model_copy(update={"model": find_minilm()})
    encoder = encoder_of(config)
    pooling = encoder.pooling or "mean"
    run, training = begin(config, masked_lm_head=pooling == "splade")
    texts, held_out = load_texts(config)
    encoded = encode_for(encoder, [*texts, *held_out], training.get_tokenizer())
    batches = PairBatches(
        [one.group for one in texts], config.batch_size, config.seed, keep_apart=takes_duplicates_for_negatives(loss)
    )
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(texts), steps=total)
    report = describe(texts, held_out, encoded)
    print("\n".join(f"{name:<24} {value}" for name, value in report.items()))
    run.write(REPORT, json.dumps(report, indent=2))
    layout = PairLayout(loss, texts, negatives_used(texts, config.hard_negatives), encoded, guided(config, texts))
    retrieval = Retrieval.of(held_out, encoded, pooling, config.matryoshka_dimensions, config.layers)
    width = vectors_by_layer(training, [encoded.datum("query", texts[0].query)], pooling, config.layers).shape[2]
    check_dimensions(config.matryoshka_dimensions, width)
    with Loop(config, run, training, total) as loop:
        if loop.start == 0:
            loop.log_evaluation(0, retrieval.measure(training))
        for step in loop:
            batch, sized_loss = layout.batch(batches.at(step))
            sized_loss = with_layers_of_step(sized_loss, config.layers_per_step, config.seed, step)
            output = training.forward_backward(batch, sized_loss, pooling=pooling).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            loop.log(step, batch, output, update, shown=SHOWN, loss=sized_loss)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, retrieval.measure(training))
    last = finish(run, training)
    if not config.all_weights:
        training.export_model(run.path / MODEL).result()  # the adapter is written too, but an encoder is used whole
    if pooling != "splade" or training.get_info().masked_lm_head:  # a decoder is no SparseEncoder of theirs
        print(f"encoder {write_settings(run.path / MODEL, encoder, width=width)}")
    return last


def check(config: EmbedConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    loss_of(config)


def loss_of(config: EmbedConfig) -> LossLike:
    """The configured loss. Raises ConfigError for one without its guide, or a guide without its loss."""
    loss = embedding_loss(config.loss, config.loss_config, config.matryoshka_dimensions, config.also, config.layers)
    check_guide(loss, config.guide)
    return loss


def guided(config: EmbedConfig, texts: Sequence[Texts]) -> Vectors | None:
    """All texts' vectors under the guide; None without one."""
    if config.guide is None:
        return None
    dtype = torch_dtype(config.dtype)
    return vectors_of(config.guide, texts, DEFAULT_MAX_LENGTH, device=config.device, dtype=dtype)


def encode_for(encoder: EncoderSettings, texts: Sequence[Texts], tokenizer: Any) -> Encoded:
    """The tokens of all texts as the encoder reads them: with its prefixes, its length and its case."""
    return encode(
        texts,
        tokenizer,
        encoder.max_length or DEFAULT_MAX_LENGTH,
        {"query": encoder.prefix("query"), "document": encoder.prefix("document")},
        pools_prefix=encoder.pools_prompt,
        lower_case=encoder.lower_case,
    )


def encoder_of(config: EmbedConfig) -> EncoderSettings:
    """The settings of the model's files, with those given here in their place. Raises ConfigError as `encoder_settings`."""
    own = encoder_settings(config.model, pooling=config.pooling)
    given: dict[Side, str | None] = {"query": config.query_prefix, "document": config.document_prefix}
    prefixes: dict[Side, str] = {side: own.prefix(side) if prefix is None else prefix for side, prefix in given.items()}
    length = config.max_length or own.max_length or DEFAULT_MAX_LENGTH
    return replace(own.with_prefixes(prefixes), pooling=own.pooling or "mean", max_length=length)


def load_texts(config: EmbedConfig) -> tuple[list[Texts], list[Texts]]:
    """Rows to train on and held-out rows, each with its group."""
    texts = grouped(read_texts(read_rows(config.data)))
    if config.eval_data is not None:
        return texts, grouped(read_texts(read_rows(config.eval_data)))
    return held_apart(texts, config.held_out, config.seed) if config.held_out else (texts, [])


def describe(texts: list[Texts], held_out: list[Texts], encoded: Encoded) -> dict[str, int]:
    """Counts of the data; `held_out_seen` counts held-out documents that are also trained on, ideally 0."""
    trained = {text for one in texts for text in (one.positive, *one.negatives)}
    return {
        "rows": len(texts),
        "groups": len({one.group for one in texts}),
        "held_out_rows": len(held_out),
        "held_out_seen": len({one.positive for one in held_out} & trained),
        "longest_text_tokens": encoded.longest,
        "texts_cut": encoded.cut,
    }


def check_dimensions(dimensions: tuple[int, ...], width: int) -> None:
    """Raise ConfigError for more dimensions than the embeddings have, before training."""
    if dimensions and max(dimensions) > width:
        raise ConfigError(f"matryoshka_dimensions has {max(dimensions)}, but the embeddings have {width} coordinates")
