"""Preference losses: which of two responses is the better one, or whether one response is good."""

from .length_normalized import ipo, ld_dpo, sigmoid_norm
from .paired import discopop, dpo, exo_pair, hinge, margin_dpo, robust
from .pointwise import apo_down, apo_zero, bco_pair, nca_pair, sppo_hard
from .reference_free import alphapo, cpo, orpo, simpo
from .reward import reward_bt
from .transport import aot, aot_unpaired
from .unpaired import apo_zero_unpaired, kto

__all__ = [
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco_pair",
    "cpo",
    "discopop",
    "dpo",
    "exo_pair",
    "hinge",
    "ipo",
    "kto",
    "ld_dpo",
    "margin_dpo",
    "nca_pair",
    "orpo",
    "reward_bt",
    "robust",
    "sigmoid_norm",
    "simpo",
    "sppo_hard",
]
