"""Names that settings of the trainer choose between; imported without torch."""

from __future__ import annotations

from typing import Literal

#: "full": the weights as they are stored; "4bit": the linear layers of a decoder's layers in NF4, see `model/weights/four_bit.py`.
BaseWeights = Literal["full", "4bit"]
#: "auto": fused on a GPU where liger-kernel is installed; "liger": fused, or an error; "none": the architecture's own layers.
FusedLayers = Literal["auto", "liger", "none"]
