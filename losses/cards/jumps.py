"""Where a curve jumps: the two points around each jump, found by bisection."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

#: A point of a curve: x, loss and gradient.
Point = tuple[float, float, float]
#: A jump changes loss or gradient by this share of its range at least, and by twice as much as a neighbouring interval.
LEAST_SHARE, STEEPER = 0.01, 2.0
#: The two points around a jump are this share of the curve's length apart.
WIDTH = 1e-7
#: A range below this is that of a constant, with errors of rounding.
CONSTANT = 1e-9


def with_jumps(points: Sequence[Point], at: Callable[[float], Point | None]) -> tuple[list[Point], tuple[int, ...]]:
    """The points and two more at each jump, and the index of the first point after each jump.

    points: in the order of x. at: the point at an x; None where a number is not finite.
    """
    steep = {i for which in (1, 2) for i in _steep([point[which] for point in points])}
    ranges = [_range([point[which] for point in points]) for which in (1, 2)]
    drawn, jumps = list(points[:1]), list[int]()
    for i, (left, right) in enumerate(itertools.pairwise(points)):
        around = _bisected(left, right, at, ranges, WIDTH * (points[-1][0] - points[0][0])) if i in steep else None
        if around is not None:
            drawn.append(around[0])
            jumps.append(len(drawn))
            drawn.append(around[1])
        drawn.append(right)
    return drawn, tuple(jumps)


def differs(before: float, after: float, values: Sequence[float]) -> bool:
    """Whether a value changes so much between two points that it jumps, if the points are the same but for rounding."""
    return abs(after - before) > max(LEAST_SHARE * _range(values), CONSTANT)


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _steep(values: Sequence[float]) -> list[int]:
    """The intervals (i, i + 1) over which the value changes much more than over a neighbouring one."""
    changes = [abs(after - before) for before, after in itertools.pairwise(values)]
    return [
        i
        for i, change in enumerate(changes)
        if change > STEEPER * min(changes[max(i - 1, 0) : i] + changes[i + 1 : i + 2], default=0.0)
        and differs(values[i], values[i + 1], values)
    ]


def _bisected(
    left: Point, right: Point, at: Callable[[float], Point | None], ranges: Sequence[float], width: float
) -> tuple[Point, Point] | None:
    """The points on both sides of the jump between two points; None if the change is gradual."""
    least = [max(LEAST_SHARE * one, CONSTANT) for one in ranges]

    def jump(a: Point, b: Point) -> float:
        """The larger change of loss and gradient, in units of the least that counts."""
        return max(abs(b[which] - a[which]) / least[which - 1] for which in (1, 2))

    while right[0] - left[0] > width:
        middle = at((left[0] + right[0]) / 2)
        if middle is None:
            return None
        left, right = (left, middle) if jump(left, middle) > jump(middle, right) else (middle, right)
        if jump(left, right) <= 1:
            return None
    return left, right
