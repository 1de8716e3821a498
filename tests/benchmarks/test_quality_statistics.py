from __future__ import annotations

import numpy as np
import pytest
from quality_statistics import draw_together

from bert_kd.errors import DataError

GOLD = np.array([0, 1] * 50)
WRONG = 1 - GOLD


def right_on(rows: int) -> np.ndarray:
    """Answers of which the first `rows` are right."""
    return np.where(np.arange(len(GOLD)) < rows, GOLD, WRONG)


def test_values_are_means_over_seeds():
    draws = draw_together(GOLD, {"one": [right_on(60), right_on(80)]}, 200, 1)
    found = draws.accuracy("one")
    assert found.value == pytest.approx(0.7)
    assert found.low < 0.7 < found.high
    assert draws.deviation("one") == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert draw_together(GOLD, {"one": right_on(60)}, 200, 1).deviation("one") is None


def test_differences_are_paired():
    """Two systems that differ on the same few rows differ surely, though each varies much."""
    draws = draw_together(GOLD, {"a": right_on(60), "b": right_on(50)}, 2000, 1)
    alone = draws.accuracy("a")
    difference = draws.difference("a", "b")
    assert difference.value == pytest.approx(0.1)
    assert 0 < difference.low < 0.1 < difference.high
    assert difference.high - difference.low < alone.high - alone.low
    # By the binomial: a difference of rows of which 10 in 100 count.
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.03, rel=0.2)


def test_equal_answers_differ_by_nothing_in_every_draw():
    seeds = [right_on(60), right_on(80)]
    difference = draw_together(GOLD, {"a": seeds, "b": seeds}, 200, 1).difference("a", "b")
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_seeds_widen_the_interval():
    rows = draw_together(GOLD, {"one": [right_on(70)] * 2}, 2000, 1).accuracy("one")
    both = draw_together(GOLD, {"one": [right_on(55), right_on(85)]}, 2000, 1).accuracy("one")
    assert both.high - both.low > 1.5 * (rows.high - rows.low)


def test_the_share_of_the_gap():
    systems = {"low": right_on(40), "middle": right_on(60), "high": right_on(80)}
    found = draw_together(GOLD, systems, 1000, 1).gap_closed("middle", "low", "high")
    assert found is not None and found.value == pytest.approx(0.5)
    assert found.low is not None and 0.2 < found.low < 0.5 < found.high < 0.8


def test_no_gap_has_no_share_and_an_unsure_one_no_bounds():
    systems = {"low": right_on(60), "middle": right_on(60), "high": right_on(61)}
    draws = draw_together(GOLD, systems, 1000, 1)
    assert draws.gap_closed("middle", "high", "low") is None
    unsure = draws.gap_closed("middle", "low", "high")
    assert unsure is not None and unsure.value == 0.0 and unsure.low is None


def test_draws_without_a_gap_count_as_beyond_both_bounds():
    """Left out, they would leave the middle 95% of fewer draws: another quantile."""
    systems = {"low": right_on(60), "middle": right_on(66), "high": right_on(68)}
    draws = draw_together(GOLD, systems, 4000, 1)
    gaps = draws.drawn["high"] - draws.drawn["low"]
    assert 0 < (gaps <= 0).mean() < 0.02
    found = draws.gap_closed("middle", "low", "high")
    there = gaps > 0
    shares = np.sort((draws.drawn["middle"] - draws.drawn["low"])[there] / gaps[there])
    out = int((~there).sum())
    position = 0.025 * (len(gaps) - 1) - out
    assert found is not None and found.low == pytest.approx(
        np.interp(position, np.arange(len(shares)), shares)
    )
    assert found.low < found.value < found.high


def test_the_same_seed_draws_the_same():
    systems = {"a": right_on(60), "b": [right_on(50), right_on(70)]}
    first, second = (draw_together(GOLD, systems, 100, 3) for _ in range(2))
    assert first.difference("a", "b") == second.difference("a", "b")


def test_rows_without_gold_labels_are_refused():
    with pytest.raises(DataError, match="no gold label"):
        draw_together([-1, 0], {"a": [0, 0]}, 100, 1)
