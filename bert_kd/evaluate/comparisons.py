"""Models against each other on the same rows, by accuracy, over one seed or several.

Here: means over seeds with intervals, paired differences, and a student beside its twin and its
teacher. Predictions are the predicted classes, [rows] or [seeds, rows].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.errors import DataError
from bert_kd.evaluate.bootstrap import Ints, draws, interval, over_seeds
from bert_kd.evaluate.metrics import checked_gold


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; `std` is the sample deviation over seeds, None for a
    single one.
    """

    value: float
    low: float
    high: float
    std: float | None
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """One student (all its seeds) beside its twin and its teacher on one split, by accuracy.

    `gap_closed` is (student − twin) / (teacher − twin); None without both, or where the twin is no
    worse than the teacher, so that there is no gap.
    """

    group: str
    split: str
    student: Estimate
    twin: Estimate | None
    teacher: Estimate | None
    minus_twin: Estimate | None
    minus_teacher: Estimate | None
    gap_closed: float | None


def accuracy_over_seeds(
    gold: npt.ArrayLike, predictions: npt.ArrayLike, samples: int, seed: int
) -> Estimate:
    """Return the mean accuracy of `predictions` [rows] or [seeds, rows], with its interval (rows
    and seeds resampled).
    """
    return _estimate(_right(gold, predictions), samples, seed)


def paired_difference(
    gold: npt.ArrayLike,
    predictions_a: npt.ArrayLike,
    predictions_b: npt.ArrayLike,
    samples: int,
    seed: int,
) -> Estimate:
    """Return accuracy(a) − accuracy(b) on the same rows, with its interval from a paired bootstrap.

    Predictions are [rows] or [seeds, rows]; seed i of a is paired with seed i of b, and a single
    one with all. Each sample draws rows, the same ones for a and b, and, where there are several,
    seeds: the interval says what another test set and other seeds might have given. With a single
    seed it knows of the rows alone.
    """
    right_a, right_b = _right(gold, predictions_a), _right(gold, predictions_b)
    if len(right_a) != len(right_b) and 1 not in (len(right_a), len(right_b)):
        raise ValueError(f"{len(right_a)} seeds cannot be paired with {len(right_b)}")
    return _estimate(right_a - right_b, samples, seed)


def compare(
    group: str,
    split: str,
    gold: npt.ArrayLike,
    *,
    student: npt.ArrayLike,
    twin: npt.ArrayLike | None = None,
    teacher: npt.ArrayLike | None = None,
    samples: int,
    seed: int,
) -> Comparison:
    """Return student against twin and teacher; all predicted classes, [rows] or [seeds, rows]."""
    own = accuracy_over_seeds(gold, student, samples, seed)
    of_twin = None if twin is None else accuracy_over_seeds(gold, twin, samples, seed)
    of_teacher = None if teacher is None else accuracy_over_seeds(gold, teacher, samples, seed)
    gap_closed = None
    if of_twin is not None and of_teacher is not None and of_teacher.value > of_twin.value:
        gap_closed = (own.value - of_twin.value) / (of_teacher.value - of_twin.value)
    return Comparison(
        group=group,
        split=split,
        student=own,
        twin=of_twin,
        teacher=of_teacher,
        minus_twin=None if twin is None else paired_difference(gold, student, twin, samples, seed),
        minus_teacher=(
            None if teacher is None else paired_difference(gold, student, teacher, samples, seed)
        ),
        gap_closed=gap_closed,
    )


def _right(gold: npt.ArrayLike, predictions: npt.ArrayLike) -> Ints:
    """Return 1 where a prediction is right, else 0; shape [seeds, rows]."""
    predicted = np.atleast_2d(np.asarray(predictions, dtype=np.int64))
    truth = checked_gold(gold, np.iinfo(np.int64).max, predicted.shape[1])
    if predicted.ndim != 2 or predicted.size == 0:
        raise DataError("there are no rows to compare: prepare a split that has some")
    return np.asarray(predicted == truth, dtype=np.int64)


def _estimate(values: Ints, samples: int, seed: int) -> Estimate:
    """Return the mean of `values` [seeds, rows] with the interval that resampling rows and seeds
    gives.
    """
    seeds, rows = values.shape
    generator = np.random.default_rng(seed)
    kinds, counts = np.unique(values, axis=1, return_counts=True)  # [seeds, kinds], [kinds]
    means = []
    for draw in draws(counts, samples, generator):
        by_seed = draw @ kinds.T / rows  # [samples, seeds]
        chosen = generator.integers(seeds, size=by_seed.shape)
        means.append(over_seeds(by_seed, chosen))
    low, high = interval(np.concatenate(means))
    each = values.mean(axis=1)
    std = float(each.std(ddof=1)) if seeds > 1 else None
    return Estimate(float(each.mean()), low, high, std, seeds)
