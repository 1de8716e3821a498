"""The scores by which teachers and students are judged, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bert_kd.evaluate.metrics import measure as report_of
from bert_kd.scores import measure

# Softmax of these: (1/4, 3/4) and (2/3, 1/3).
LOGITS = np.log(np.array([[1.0, 3.0], [2.0, 1.0]], dtype=np.float32))


def test_macro_f1_leaves_out_classes_that_do_not_occur():
    """As the report has it, so that all choose by one measure."""
    logits = np.eye(5)[[0, 1, 1, 3]]
    gold = np.array([0, 1, 0, 1])  # of five classes, 2 and 4 are in neither
    found = measure(logits, gold)["macro_f1"]
    assert found == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    report = report_of(logits, gold, "abcde", bootstrap_samples=100, seed=1)
    assert found == pytest.approx(report.macro_f1)


def test_metrics():
    found = measure(LOGITS, np.array([1, 1]))
    # Answers 1 and 0: class 1 has F1 2/3 (precision 1, recall 1/2), class 0 has 0.
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert found["nll"] == pytest.approx((math.log(4 / 3) + math.log(3)) / 2)
