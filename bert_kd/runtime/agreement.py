"""How far an exported model's answers lie from torch's, and how far they may.

Limits are shares of the validation rows: labels that differ from torch's (0.5% in int8, 0.1% in
bf16 and fp32), and accuracy on gold labels that is lost (0.1 points). A set of rows can't tell a
share smaller than one row, so one row is always granted: of 200, one changed label is 0.5% whatever
the true share is. So that this lets nothing broken through, a label changed within the grant alone
must have been a near tie: no probability of any row may then have moved by more than `NEAR_TIE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.runtime.engine import Floats, Precision

Labels = npt.NDArray[np.int64]

CHANGED_PER_THOUSAND = {"int8": 5, "bf16": 1, "fp32": 1}
LOST_PER_THOUSAND = 1
NEAR_TIE = 0.05


@dataclass(frozen=True)
class Agreement:
    """How far the exported model's answers lie from torch's, as measured at export."""

    rows: int
    largest_difference: float
    """In a logit."""
    label_agreement: float
    """Share of rows with the same label."""
    largest_probability_difference: float | None = None
    labelled: int = 0
    """Rows with a gold label."""
    accuracy_change: float | None = None
    """Accuracy on these less torch's; None where there are none."""


def measure(ours: Floats, torchs: Floats, gold: Labels | None = None) -> Agreement:
    """Return how far logits [rows, classes] lie from torch's; `gold` [rows] holds −1 for a row
    without a label.
    """
    rows = len(ours)
    predicted, expected = ours.argmax(axis=-1), torchs.argmax(axis=-1)
    labelled = np.zeros(rows, dtype=bool) if gold is None else gold >= 0
    count = int(labelled.sum())
    change = None
    if gold is not None and count:
        right, right_before = (predicted == gold)[labelled], (expected == gold)[labelled]
        change = (int(right.sum()) - int(right_before.sum())) / count
    return Agreement(
        rows=rows,
        largest_difference=float(np.abs(ours - torchs).max()),  # NaN stays NaN
        label_agreement=int((predicted == expected).sum()) / rows,
        largest_probability_difference=float(np.abs(_softmax(ours) - _softmax(torchs)).max()),
        labelled=count,
        accuracy_change=change,
    )


def shortfall(agreement: Agreement, precision: Precision) -> str | None:
    """Return why a model of this precision can't stand for the student, or None where it can."""
    if not np.isfinite(agreement.largest_difference):
        return "it answers with values that are no numbers"
    rows = agreement.rows
    changed = round(rows * (1 - agreement.label_agreement))
    allowed = rows * CHANGED_PER_THOUSAND[precision] // 1000
    moved = agreement.largest_probability_difference or 0.0
    if changed > max(allowed, 1):
        return f"{changed} of {rows:,} labels differ from torch's, and {max(allowed, 1)} may"
    if changed > allowed and moved > NEAR_TIE:
        return (
            f"a label of {rows:,} differs from torch's, and a probability by {moved:.2g}: it was "
            "no near tie"
        )
    lost = round(-agreement.labelled * (agreement.accuracy_change or 0.0))
    allowed = max(agreement.labelled * LOST_PER_THOUSAND // 1000, 1)
    if lost > allowed:
        return f"{lost} of {agreement.labelled:,} right answers are lost, and {allowed} may be"
    return None


def _softmax(logits: Floats) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares
