"""Supervised losses: make given tokens likelier."""

from .likelihood import cross_entropy, unlikelihood
from .reweighted import dft, focal
from .whole_softmax import label_smoothing, z_loss

__all__ = ["cross_entropy", "dft", "focal", "label_smoothing", "unlikelihood", "z_loss"]
