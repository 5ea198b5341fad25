"""Embedding losses: one pooled vector a datum."""

from .in_batch import info_nce, multiple_negatives_ranking, ntxent, siglip
from .matryoshka import matryoshka
from .pairs import contrastive_pairs, cosine_similarity
from .ranking import angle, cosent
from .triplets import margin_mse, triplet

__all__ = [
    "angle",
    "contrastive_pairs",
    "cosent",
    "cosine_similarity",
    "info_nce",
    "margin_mse",
    "matryoshka",
    "multiple_negatives_ranking",
    "ntxent",
    "siglip",
    "triplet",
]
