"""Accuracies of several systems on the same rows, with intervals from one joint bootstrap.

Every draw takes the same rows for all systems and, among systems with equally many seeds, the same
seeds; so differences and shares of gaps are paired by construction. Intervals hold the middle 95%
of the draws and say what another test set and other seeds might have given.

`bert_kd.evaluate.comparisons` does this for one student, its twin and its teacher. A table here has
many systems and asks for ratios of differences, which need one set of draws for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.evaluate.bootstrap import Floats, Ints, draws, interval, over_seeds
from bert_kd.evaluate.metrics import checked_gold

MOST_WITHOUT_GAP = 0.02
"""Share of draws in which the teacher may be no better than the twin for the share of the gap that
a student closes to have an interval: from there on it has no bounds."""


@dataclass(frozen=True)
class Interval:
    """A value with the interval of its draws; None where it has no bounds."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Draws:
    """Mean accuracy over seeds of every system in every draw, shape [samples] each, and the
    accuracy of each seed on the rows as they are, shape [seeds].
    """

    drawn: Mapping[str, Floats]
    by_seed: Mapping[str, Floats]

    def accuracy(self, name: str) -> Interval:
        """Return the mean accuracy over seeds."""
        return _interval(self._value(name), self.drawn[name])

    def deviation(self, name: str) -> float | None:
        """Return the sample standard deviation over seeds, None for a single one."""
        found = self.by_seed[name]
        return float(found.std(ddof=1)) if len(found) > 1 else None

    def difference(self, name: str, other: str) -> Interval:
        """Return accuracy(name) − accuracy(other)."""
        return _interval(
            self._value(name) - self._value(other), self.drawn[name] - self.drawn[other]
        )

    def gap_closed(self, name: str, low: str, high: str) -> Interval | None:
        """Return (name − low) / (high − low), None where `high` is no better than `low`.

        Without bounds where that holds for more than a few of the draws.
        """
        gap = self._value(high) - self._value(low)
        if gap <= 0:
            return None
        value = (self._value(name) - self._value(low)) / gap
        gaps = self.drawn[high] - self.drawn[low]  # [samples]
        there = gaps > 0
        if float((~there).mean()) >= MOST_WITHOUT_GAP:
            return Interval(value, None, None)
        shares = (self.drawn[name] - self.drawn[low])[there] / gaps[there]
        # A draw without a gap says nothing of the share: it counts as beyond either bound.
        unknown = np.full(int((~there).sum()), np.inf)
        return Interval(
            value,
            interval(np.concatenate([shares, -unknown]))[0],
            interval(np.concatenate([shares, unknown]))[1],
        )

    def _value(self, name: str) -> float:
        return float(self.by_seed[name].mean())


def draw_together(
    gold: npt.ArrayLike, predictions: Mapping[str, npt.ArrayLike], samples: int, seed: int
) -> Draws:
    """Return the accuracies of all systems under `samples` joint draws of rows and seeds.

    `gold` is [rows]; each of `predictions` is [rows] or [seeds, rows]. Raises DataError where a row
    has no gold label.
    """
    if not predictions:
        raise ValueError("no system to compare")
    right: dict[str, Floats] = {}
    for name, found in predictions.items():
        answers = np.atleast_2d(np.asarray(found, dtype=np.int64))  # [seeds, rows]
        truth = checked_gold(gold, np.iinfo(np.int64).max, answers.shape[1])
        right[name] = (answers == truth).astype(np.float64)
    stacked = np.concatenate(list(right.values()))  # [all seeds, rows]
    # Rows on which all systems do alike are one kind: a draw needs only how often each occurs.
    kinds, counts = np.unique(stacked, axis=1, return_counts=True)  # [all seeds, kinds], [kinds]
    generator = np.random.default_rng(seed)
    means = np.concatenate(  # [samples, all seeds]
        [draw @ kinds.T for draw in draws(counts, samples, generator)]
    ) / int(counts.sum())
    chosen: dict[int, Ints] = {}  # how many seeds → [samples, seeds]
    drawn: dict[str, Floats] = {}
    start = 0
    for name, values in right.items():
        seeds = len(values)
        if seeds not in chosen:
            chosen[seeds] = generator.integers(seeds, size=(samples, seeds))
        own = means[:, start : start + seeds]
        drawn[name] = over_seeds(own, chosen[seeds])
        start += seeds
    return Draws(drawn, {name: values.mean(axis=1) for name, values in right.items()})


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = interval(drawn)
    return Interval(value, low, high)
