"""Every metric against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bert_kd.errors import DataError
from bert_kd.evaluate.metrics import measure, worst_errors

LABELS = ("a", "b", "c")
GOLD = np.array([0, 0, 0, 1, 1, 2])
ANSWERED = np.array([0, 0, 1, 1, 1, 1])


def logits_of(answers, probability: float = 0.8, classes: int = 3) -> np.ndarray:
    """Return logits whose softmax gives `probability` to the answer, the rest to the others."""
    other = (1 - probability) / (classes - 1)
    found = np.full((len(answers), classes), math.log(other))
    found[np.arange(len(answers)), answers] = math.log(probability)
    return found


def measured(logits, gold=GOLD, labels=LABELS, **more):
    return measure(logits, gold, labels, **{"bootstrap_samples": 200, "seed": 1, **more})


def test_by_hand():
    found = measured(logits_of(ANSWERED) + 7.0)  # a shift changes nothing
    assert found.rows == 6
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.confusion == ((2, 1, 0), (0, 2, 0), (0, 1, 0))
    a, b, c = found.classes
    assert (a.precision, a.recall, a.support) == (1.0, pytest.approx(2 / 3), 3)
    assert (b.precision, b.recall, b.support) == (0.5, 1.0, 2)
    assert (c.precision, c.recall, c.f1, c.support) == (None, 0.0, 0.0, 1)
    assert a.f1 == pytest.approx(0.8) and b.f1 == pytest.approx(2 / 3)
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    assert found.nll == pytest.approx(-(4 * math.log(0.8) + 2 * math.log(0.1)) / 6)
    assert found.ece == pytest.approx(abs(4 / 6 - 0.8))  # one bin holds all


def test_the_metrics_agree_with_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    generator = np.random.default_rng(0)
    logits, gold = generator.normal(size=(300, 5)) * 2, generator.integers(0, 5, 300)
    found = measured(logits, gold, tuple("abcde"))
    answers = logits.argmax(axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.accuracy == pytest.approx(accuracy_score(gold, answers))
    assert found.macro_f1 == pytest.approx(f1_score(gold, answers, average="macro"))
    assert found.nll == pytest.approx(log_loss(gold, probabilities))


def test_calibration_error_over_two_bins_by_hand():
    # Four answers with 0.9, three of them right; four with 0.6, one right.
    logits = np.concatenate([logits_of([0] * 4, 0.9, 2), logits_of([0] * 4, 0.6, 2)])
    gold = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    found = measured(logits, gold, ("x", "y"))
    assert found.ece == pytest.approx(0.5 * abs(0.75 - 0.9) + 0.5 * abs(0.25 - 0.6))
    filled = [entry for entry in found.reliability if entry.rows]
    assert len(found.reliability) == 15 and len(filled) == 2
    assert filled[1].accuracy == 0.75 and filled[1].confidence == pytest.approx(0.9)
    assert filled[1].low < 0.9 <= filled[1].high


def test_agreement_is_with_the_teachers_answers_not_the_gold_labels():
    teacher = logits_of(np.array([0, 0, 1, 1, 1, 0]))
    found = measured(logits_of(ANSWERED), teacher_logits=teacher)
    assert found.agreement == pytest.approx(5 / 6)
    assert measured(logits_of(ANSWERED)).agreement is None


def test_intervals_hold_the_value_shrink_with_rows_and_go_by_the_seed():
    generator = np.random.default_rng(3)

    def width(rows: int, seed: int = 1):
        gold = generator.integers(0, 3, rows)
        answers = np.where(np.arange(rows) % 5 == 0, (gold + 1) % 3, gold)
        found = measured(logits_of(answers), gold, bootstrap_samples=2000, seed=seed)
        low, high = found.accuracy_interval
        assert low <= found.accuracy <= high
        assert found.macro_f1_interval[0] <= found.macro_f1 <= found.macro_f1_interval[1]
        return high - low

    narrow, wide = width(4000), width(100)
    assert wide == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 100), rel=0.15)
    assert narrow < wide / 4
    same = [measured(logits_of(ANSWERED), seed=5).accuracy_interval for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("answers", [GOLD, (GOLD + 1) % 3])
def test_all_right_and_all_wrong(answers):
    found = measured(logits_of(answers))
    right = float((answers == GOLD).all())
    assert found.accuracy == right == found.accuracy_interval[0] == found.accuracy_interval[1]
    assert found.macro_f1 == right


def test_one_row_and_a_class_that_never_occurs():
    found = measured(logits_of([1]), np.array([1]))
    assert found.accuracy == 1.0 and found.macro_f1 == 1.0
    assert found.classes[2].support == 0 and found.classes[2].f1 is None


@pytest.mark.parametrize(
    ("logits", "gold", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "no rows"),
        (logits_of([0, 1]), np.array([0, -1]), "1 of 2 rows have no gold label"),
        (np.array([[0, 1, np.nan]]), np.array([0]), "not finite"),
        (np.array([[0, 1, np.inf]]), np.array([0]), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, gold, message):
    with pytest.raises(DataError, match=message):
        measured(logits, gold)


def test_worst_errors_are_the_most_certain_ones_first():
    logits = np.concatenate(
        [logits_of([0], 0.9), logits_of([1], 0.7), logits_of([2], 0.95), logits_of([1], 0.8)]
    )
    gold = np.array([0, 0, 0, 0])
    texts = ["right", "a bit wrong", "very wrong", "wrong"]
    found = worst_errors(texts, None, logits, gold, LABELS, teacher_logits=logits, count=2)
    assert [error.text for error in found] == ["very wrong", "wrong"]
    assert (found[0].gold, found[0].answer, found[0].teacher_answer) == ("a", "c", "c")
    assert found[0].probability == pytest.approx(0.95)
    pairs = worst_errors(texts, texts, logits, gold, LABELS, count=9)
    assert len(pairs) == 3 and pairs[0].text_b == "very wrong" and pairs[0].teacher_answer is None
