"""The gate lets good answers pass and says, with figures, why others don't."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bert_kd.errors import CacheError
from bert_kd.logits.cache import Answers
from bert_kd.logits.gate import gate

LABELS = ("a", "b", "c")


def saying(predicted):
    """Answers whose largest logit is at `predicted`."""
    return Answers(np.eye(3, dtype=np.float32)[np.asarray(predicted)])


def test_gives_the_figures():
    gold = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    predicted = [0, 0, 0, 0, 1, 1, 1, 1, 2, 0]
    found = gate(saying(predicted), LABELS, gold, 0.2)
    assert (found.rows, found.labelled) == (10, 10)
    assert found.accuracy == pytest.approx(0.8)
    assert found.majority == pytest.approx(0.5)
    # Always saying a is wrong 5 times, the teacher twice: 3 of 5 errors are avoided.
    assert found.gain == pytest.approx(0.6)


def test_rows_without_a_gold_label_do_not_count():
    gold = np.array([0, 0, 1, 1, -1, -1, -1, -1])
    found = gate(saying([0, 0, 1, 0, 2, 2, 2, 2]), LABELS, gold, 0.2)
    assert (found.rows, found.labelled) == (8, 4)
    assert found.accuracy == pytest.approx(0.75)
    assert found.gain == pytest.approx(0.5)


def test_refuses_a_teacher_near_the_majority_class():
    gold = np.array([0] * 6 + [1] * 4)
    with pytest.raises(CacheError) as error:
        gate(saying([0] * 7 + [1, 0, 0]), LABELS, gold, 0.3, split="validation")
    for figure in ("70.0%", "60.0%", "25.0%", "30.0%", "validation", "minimum_gain", "10"):
        assert figure in str(error.value)
    assert gate(saying([0] * 7 + [1, 0, 0]), LABELS, gold, 0.2).gain == pytest.approx(0.25)


def test_a_teacher_worse_than_the_majority_class_has_a_negative_gain():
    gold = np.array([0, 0, 0, 1])
    assert gate(saying([1, 1, 1, 1]), LABELS, gold, -5.0).gain == pytest.approx(-2.0)


def test_exchanged_labels_are_recognised():
    gold = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    with pytest.raises(CacheError, match=r"order b, c, a it would be right on 100\.0%"):
        gate(saying((gold + 2) % 3), LABELS, gold, 0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_values_that_are_not_finite(bad):
    answers = saying([0, 1, 2, 0])
    answers.logits[2, 1] = bad
    with pytest.raises(CacheError, match=r"1 of 4 .* row 3"):
        gate(answers, LABELS, np.array([0, 1, 2, -1]), 0.2)


def test_refuses_another_label_order_and_other_names():
    gold = np.array([0, 1, 2])
    assert gate(saying(gold), LABELS, gold, 0.2, answer_labels=LABELS).accuracy == 1
    with pytest.raises(CacheError, match="order c, b, a"):
        gate(saying(gold), LABELS, gold, 0.2, answer_labels=LABELS[::-1])
    with pytest.raises(CacheError, match="'c' is lacking"):
        gate(saying(gold), LABELS, gold, 0.2, answer_labels=("a", "b", "d"))


def test_without_gold_labels_there_is_nothing_to_measure():
    found = gate(saying([0, 1]), LABELS, np.array([-1, -1]), 0.2)
    assert found.labelled == 0
    assert math.isnan(found.accuracy) and math.isnan(found.gain)


def test_a_single_gold_class_is_no_proof_of_anything():
    assert gate(saying([1, 1]), LABELS, np.array([1, 1]), 0.2).gain == 1
    with pytest.raises(CacheError):
        gate(saying([1, 0]), LABELS, np.array([1, 1]), 0.2)


def test_rows_and_classes_must_fit():
    with pytest.raises(ValueError, match="do not go with"):
        gate(saying([0, 1]), LABELS, np.array([0]), 0.2)
