"""Student, twin and teacher on the same rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bert_kd.errors import DataError
from bert_kd.evaluate.comparisons import accuracy_over_seeds, compare, paired_difference

GOLD = np.arange(200) % 4
RIGHT = GOLD
WRONG = (GOLD + 1) % 4


def mixed(share: float, shift: int = 0) -> np.ndarray:
    """Return answers of which this share is right, evenly spread."""
    is_right = (np.arange(200) + shift) % 100 < 100 * share
    return np.where(is_right, RIGHT, WRONG)


def test_equal_predictions_differ_by_exactly_nothing():
    found = paired_difference(GOLD, mixed(0.7), mixed(0.7), samples=500, seed=1)
    assert (found.value, found.low, found.high, found.std) == (0.0, 0.0, 0.0, None)


def test_a_paired_difference_is_narrower_than_two_accuracies():
    a, b = mixed(0.8), mixed(0.7)  # b is wrong where a is, and on ten more in a hundred
    found = paired_difference(GOLD, a, b, samples=4000, seed=1)
    assert found.value == pytest.approx(0.1)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 200)
    assert found.low == pytest.approx(0.1 - half, abs=0.012)
    assert found.high == pytest.approx(0.1 + half, abs=0.012)
    assert found.low > 0  # unpaired, 0 would lie inside


def test_seeds_are_averaged_and_widen_the_interval():
    seeds = np.stack([mixed(0.6), mixed(0.7), mixed(0.8)])
    found = accuracy_over_seeds(GOLD, seeds, samples=2000, seed=1)
    assert found.value == pytest.approx(0.7) and found.seeds == 3
    assert found.std == pytest.approx(0.1)
    single = accuracy_over_seeds(GOLD, mixed(0.7), samples=2000, seed=1)
    assert found.high - found.low > single.high - single.low and single.std is None


def test_a_comparison_tells_what_the_teacher_brought():
    found = compare(
        "base", "test", GOLD, student=mixed(0.85), twin=mixed(0.8), teacher=mixed(0.9),
        samples=200, seed=1,
    )  # fmt: skip
    assert found.minus_twin.value == pytest.approx(0.05)
    assert found.minus_teacher.value == pytest.approx(-0.05)
    assert found.gap_closed == pytest.approx(0.5)


def test_without_twin_teacher_or_gap():
    alone = compare("base", "test", GOLD, student=mixed(0.8), samples=200, seed=1)
    assert alone.twin is alone.teacher is alone.minus_twin is alone.gap_closed is None
    better = compare(
        "base", "test", GOLD, student=mixed(0.8), twin=mixed(0.9), teacher=mixed(0.9),
        samples=200, seed=1,
    )  # fmt: skip
    assert better.gap_closed is None


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="no gold label"):
        accuracy_over_seeds(np.array([0, -1]), np.array([0, 1]), samples=100, seed=1)
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(GOLD, np.stack([RIGHT] * 2), np.stack([RIGHT] * 3), 100, 1)
