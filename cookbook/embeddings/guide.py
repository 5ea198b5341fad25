"""Vectors of a guide, or of a teacher: another encoder, run once over all texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...datums.errors import ConfigError
from ...losses.loss.loss import LossLike
from .data import Side, Texts, encode
from .retrieval import embeddings
from .sentence_encoder import encoder_settings, find_minilm

#: Inputs that hold such a vector.
VECTORS = ("guide_embedding", "teacher_embedding")
#: By "query" and "document": the vector [D] of each text.
Vectors = Mapping[Side, Mapping[str, np.ndarray]]


def check_guide(loss: LossLike, guide: str | None) -> None:
    """Raise ConfigError where the loss reads vectors of a guide and there is none, or the other way round."""
    read = [one.name for _, part in loss.parts for one in part.spec.inputs if one.name in VECTORS]
    if read and guide is None:
        raise ConfigError(f"{loss.name} reads {read[0]!r}: name the encoder that gives these vectors with --guide")
    if guide is not None and not read:
        raise ConfigError(f"--guide {guide} would do nothing: {loss.name} reads none of {', '.join(VECTORS)}")


def vectors_of(
    guide: str, texts: Sequence[Texts], max_length: int, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Vectors:
    """Each text's vector as this encoder makes it, with its own pooling, prompts and length (else `max_length`)."""
    from ...trainer import ServiceClient

    name = find_minilm() if guide == "minilm" else guide
    encoder = encoder_settings(name)
    client = ServiceClient(device=device, dtype=dtype).create_reference_client(
        base_model=name, masked_lm_head=encoder.pooling == "splade"
    )
    encoded = encode(
        texts,
        client.get_tokenizer(),
        encoder.max_length or max_length,
        {"query": encoder.prefix("query"), "document": encoder.prefix("document")},
        pools_prefix=encoder.pools_prompt,
        lower_case=encoder.lower_case,
    )
    sides: dict[Side, Mapping[str, object]] = {"query": encoded.queries, "document": encoded.documents}
    return {
        side: dict(
            zip(
                known,
                embeddings(client, [encoded.datum(side, text) for text in known], encoder.pooling or "mean").numpy(),
                strict=True,
            )
        )
        for side, known in sides.items()
    }
