"""Supervised losses: make given tokens likelier."""

from .likelihood import cross_entropy, unlikelihood
from .regularizers import label_smoothing, z_loss
from .reweighted import dft, focal

__all__ = ["cross_entropy", "dft", "focal", "label_smoothing", "unlikelihood", "z_loss"]
