"""Intervals by bootstrap: what the numbers would have been on other samples of the same rows.

All intervals hold the middle 95% of bootstrap values (percentile bootstrap). Resampling rows with
replacement is the same as drawing, from a multinomial distribution, how often each distinct row
occurs; so what is drawn are the counts of the distinct kinds of rows (gold × answer, or right and
wrong by seed), which is exact and needs no [samples, rows] array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_CELLS_AT_ONCE = 1 << 21

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def interval(values: Floats) -> tuple[float, float]:
    """Return the percentiles that hold the middle 95 % of bootstrap values."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def over_seeds(by_seed: Floats, chosen: Ints) -> Floats:
    """Return the means [samples] over the drawn seeds `chosen` of the values `by_seed`, both
    [samples, seeds].

    The mean of n seeds drawn among n varies by (n − 1) / n of the variance that the mean of n other
    seeds has: half of it with two seeds. So each draw's distance from the mean of all its seeds is
    stretched by √(n / (n − 1)).
    """
    seeds = by_seed.shape[1]
    drawn: Floats = np.take_along_axis(by_seed, chosen, axis=1).mean(axis=1)
    if seeds == 1:
        return drawn
    centre = by_seed.mean(axis=1)  # [samples]
    stretched: Floats = centre + (drawn - centre) * math.sqrt(seeds / (seeds - 1))
    return stretched


def draws(counts: Ints, samples: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield bootstrap counts [some samples, kinds] of rows that fall into kinds of these `counts`
    [kinds].
    """
    rows = int(counts.sum())
    at_once = max(_CELLS_AT_ONCE // len(counts), 1)
    for start in range(0, samples, at_once):
        size = min(at_once, samples - start)
        yield generator.multinomial(rows, counts / rows, size=size).astype(np.float64)
