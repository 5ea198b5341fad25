"""Names that settings of data choose between; imported without torch."""

from __future__ import annotations

from typing import Literal

#: What is done with a sequence that is too long: an error, no datum, or a cut at one of its ends or in the middle.
Truncation = Literal["error", "drop", "right", "left", "middle"]
#: The turns of a conversation that are learned.
TrainOn = Literal["all_assistant", "last_assistant", "all"]
