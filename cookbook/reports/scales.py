"""The vertical axis of a chart: linear or logarithmic, with round numbers on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Positive values that span this factor can be drawn on a logarithmic axis, and from the second factor on they are, up to the
#: third: beyond it the smallest is probably 0 but for rounding.
OFFERED_FROM, LOGARITHMIC_FROM, LOGARITHMIC_TO = 10.0, 100.0, 1e7


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, equal steps or, if logarithmic, equal factors apart."""

    low: float
    high: float
    is_logarithmic: bool = False

    def share(self, value: float) -> float:
        """The place of a value: 0 at the lower end, 1 at the upper."""
        low, high, at = (
            map(math.log, (self.low, self.high, value)) if self.is_logarithmic else (self.low, self.high, value)
        )
        return (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values and their texts, all different."""
        values = _powers(self.low, self.high) if self.is_logarithmic else ticks(self.low, self.high)
        near_zero = 0.0 if self.is_logarithmic else 1e-9 * (self.high - self.low)
        return [(value, "0" if abs(value) < near_zero else f"{value:.10g}") for value in values]


def scales(values: np.ndarray) -> list[Scale]:
    """The scale of the values, and the other kind where both make sense; at least one value."""
    low, high = float(values.min()), float(values.max())
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    linear = (
        Scale(-0.04, 1.0) if low == high == 0 else Scale(low - room, high + room)
    )  # 0 is probably a fraction: up to 1
    if low <= 0 or high < OFFERED_FROM * low:
        return [linear]
    factor = math.exp(0.04 * (math.log(high) - math.log(low)))
    if not 1e-300 < low / factor < high * factor < 1e300:  # near the ends of what a float holds
        return [linear]
    logarithmic = Scale(low / factor, high * factor, is_logarithmic=True)
    is_chosen = LOGARITHMIC_FROM * low <= high <= LOGARITHMIC_TO * low
    return [logarithmic, linear] if is_chosen else [linear, logarithmic]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / count
    if not math.isfinite(rough) or rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten, with their multiples by 2 and 5 if there are few; every second or third one if there are many."""
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(exponents) > 2:
        return [10.0**exponent for exponent in exponents[:: -(-len(exponents) // most)]]
    values = (
        digit * 10.0**exponent for exponent in range(exponents.start - 1, exponents.stop + 1) for digit in (1, 2, 5)
    )
    return [value for value in values if low <= value <= high]
