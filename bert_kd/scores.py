"""What teachers and students are judged by on validation: accuracy, macro-F1, likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GREATER_IS_BETTER = {"accuracy": True, "macro_f1": True, "nll": False}


def measure(logits: npt.NDArray[Any], gold: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy, macro-F1 and mean negative log-likelihood (nats a row) of `logits`
    [rows, classes] on the labels `gold` [rows].

    Macro-F1 is the mean over the classes that occur in the gold labels or the answers
    (scikit-learn's default), as in the report.
    """
    from sklearn.metrics import f1_score

    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)  # [rows, classes]
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    answers = logits.argmax(axis=1)  # [rows]
    return {
        "accuracy": float((answers == gold).mean()),
        "macro_f1": float(f1_score(gold, answers, average="macro", zero_division=0)),
        "nll": float(-log_probabilities[np.arange(len(gold)), gold].mean()),
    }
