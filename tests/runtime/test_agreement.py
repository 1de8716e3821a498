"""What is good enough: shares where they can be told, one near tie where they can't."""

from __future__ import annotations

import numpy as np
import pytest

from bert_kd.runtime.agreement import measure, shortfall


def logits(rows, changed=0, margin=0.02):
    """Torch's and another's logits of two classes: `changed` labels differ, by near ties."""
    torchs = np.tile(np.asarray([[2.0, -2.0]], dtype=np.float32), (rows, 1))
    torchs[:changed] = [margin, 0]
    ours = torchs.copy()
    ours[:changed] = [0, margin]
    return ours, torchs


def test_what_is_measured():
    torchs = np.asarray([[1, 0], [0, 3], [0, 1], [2, 0]], dtype=np.float32)
    ours = torchs.copy()
    ours[0] = [0, 1]
    gold = np.asarray([0, 1, -1, 1])
    found = measure(ours, torchs, gold)
    assert (found.rows, found.labelled) == (4, 3)
    assert found.label_agreement == 0.75
    assert found.largest_difference == 1
    share = 1 / (1 + np.exp(-1))
    assert found.largest_probability_difference == pytest.approx(2 * share - 1)
    assert found.accuracy_change == pytest.approx(-1 / 3)
    assert measure(ours, torchs).accuracy_change is None
    assert measure(ours, torchs, np.full(4, -1)).accuracy_change is None


@pytest.mark.parametrize(
    ("precision", "rows", "changed", "good"),
    [
        ("int8", 1000, 5, True),
        ("int8", 1000, 6, False),
        ("int8", 872, 4, True),
        ("int8", 872, 5, False),
        ("bf16", 5000, 5, True),
        ("bf16", 5000, 6, False),
        ("fp32", 1000, 1, True),
        ("fp32", 1000, 2, False),
        # Fewer rows than can tell such a share: one is granted, two are not.
        ("int8", 199, 1, True),
        ("int8", 199, 2, False),
        ("fp32", 200, 1, True),
        ("fp32", 200, 2, False),
        ("fp32", 1, 1, True),
    ],
)
def test_labels_that_may_differ(precision, rows, changed, good):
    assert (shortfall(measure(*logits(rows, changed)), precision) is None) == good


def test_the_granted_row_must_have_been_a_near_tie():
    assert "no near tie" in shortfall(measure(*logits(200, 1, margin=0.3)), "fp32")
    assert shortfall(measure(*logits(200, 1, margin=0.3)), "int8") is None  # a share of 0.5%


@pytest.mark.parametrize(
    ("rows", "lost", "good"),
    [(200, 1, True), (1000, 1, True), (1000, 2, False), (2000, 2, True), (2000, 3, False)],
)
def test_right_answers_that_may_be_lost(rows, lost, good):
    ours, torchs = logits(rows, lost)
    gold = np.zeros(rows, dtype=np.int64)
    found = shortfall(measure(ours, torchs, gold), "int8")
    assert found is None if good else f"{lost} of {rows:,} right answers are lost" in found
    gold[: lost // 2] = 1  # as many are won as lost, or but for one
    assert shortfall(measure(ours, torchs, gold), "int8") is None


def test_no_numbers_are_never_good_enough():
    ours, torchs = logits(10)
    ours[3] = np.nan
    assert "no numbers" in shortfall(measure(ours, torchs), "int8")
