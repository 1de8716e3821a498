"""A teacher beside a linear model: who is told to be worse, and when there is no telling."""

from __future__ import annotations

import numpy as np
import pytest

from bert_kd.data.keys import row_keys
from bert_kd.data.rows import Rows
from bert_kd.logits.reference import Reference, compare_with_linear

CLASSES = ("红 rouge", "绿 vert", "蓝 bleu")


def rows(count: int, *, pairs: bool = False, first: int = 0) -> Rows:
    """Rows whose class stands in the text (of pairs in the second), among other words."""
    labels = np.arange(count) % len(CLASSES)
    telling = [f"{CLASSES[label]} word{first + row}" for row, label in enumerate(labels)]
    silent = [f"one of {first + row}" for row in range(count)]
    texts, others = (silent, telling) if pairs else (telling, None)
    views = np.zeros(count, dtype=np.int16)
    return Rows(row_keys(texts, others), texts, others, labels.astype(np.int64), views)


def right_on(validation: Rows, share: float) -> np.ndarray:
    """Logits that are right on the first share of the rows, and name the next class in the rest."""
    wrong = np.arange(len(validation)) >= share * len(validation)
    return np.eye(len(CLASSES), dtype=np.float32)[(validation.labels + wrong) % len(CLASSES)]


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_a_teacher_that_errs_where_n_grams_tell_is_worse(pairs):
    train, validation = rows(90, pairs=pairs), rows(60, pairs=pairs, first=1000)
    found = compare_with_linear(train, validation, right_on(validation, 0.8))
    assert found is not None and found.worse
    assert (found.rows, found.linear, found.teacher) == (60, 1.0, pytest.approx(0.8))
    assert found.chance == pytest.approx(0.5**12)  # twelve rows tell them apart, all one way
    assert "80.0%" in found.describe() and "100.0%" in found.describe()
    good = compare_with_linear(train, validation, right_on(validation, 1.0))
    assert good is not None and not good.worse and good.chance == 1.0


def test_a_difference_that_chance_may_bring_is_none():
    validation = rows(30, first=1000)
    found = compare_with_linear(rows(90), validation, right_on(validation, 0.9))
    assert found is not None and found.linear == 1.0 and not found.worse  # 3 of 30: p = 1/8


def test_a_little_worse_is_good_enough():
    assert not Reference(10_000, teacher=0.90, linear=0.91, chance=1e-6).worse
    assert Reference(10_000, teacher=0.88, linear=0.91, chance=1e-6).worse


def test_where_nothing_is_learned_or_asked_there_is_no_telling():
    train, validation = rows(90), rows(30)
    answers = right_on(validation, 0.0)
    unlabelled = Rows(train.keys, train.texts, None, np.full(90, -1), train.views)
    assert compare_with_linear(unlabelled, validation, answers) is None
    one_class = Rows(train.keys, train.texts, None, np.zeros(90, dtype=np.int64), train.views)
    assert compare_with_linear(one_class, validation, answers) is None
    nobody = Rows(validation.keys, validation.texts, None, np.full(30, -1), validation.views)
    assert compare_with_linear(train, nobody, answers) is None
    blank = Rows(train.keys, ["!"] * 90, None, train.labels, train.views)
    assert compare_with_linear(blank, validation, answers) is None


def test_of_large_data_the_model_reads_a_part(monkeypatch):
    monkeypatch.setattr("bert_kd.logits.reference.MOST_ROWS", 31)
    validation = rows(60, first=1000)
    found = compare_with_linear(rows(9000), validation, right_on(validation, 0.5))
    assert found is not None and found.linear == 1.0
