"""An interval of numbers, such as the 95 % interval of a mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """low <= high, both finite. In JSON it is the list [low, high]."""

    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def clamped(self, least: float, most: float = float("inf")) -> Interval:
        """The same interval, with bounds outside of [least, most] moved to its ends."""
        return Interval(min(max(self.low, least), most), min(max(self.high, least), most))
