"""The gate before training: are these answers worth learning from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.errors import CacheError
from bert_kd.logits.cache import Answers
from bert_kd.logits.combine import column_order


@dataclass(frozen=True)
class Gate:
    """The figures of a gate that was passed; NaN where no row has a gold label."""

    rows: int
    labelled: int
    accuracy: float
    """Of the teacher, over the labelled rows."""
    majority: float
    """Share of the most frequent gold label: the accuracy of always saying it."""
    gain: float
    """Share of the majority class's errors that the teacher avoids."""


def gate(
    answers: Answers,
    labels: Sequence[str],
    gold: npt.NDArray[np.int64],
    minimum_gain: float,
    *,
    answer_labels: Sequence[str] | None = None,
    split: str = "train",
) -> Gate:
    """Check answers against gold labels [rows] (−1: none, not counted) and return the figures.

    That every key has an answer has been seen to by the look-up that made `answers`.
    `answer_labels` names their columns; None: they come from `read_teachers`, which has put them
    in the order of `labels`. Raises CacheError where a logit is not finite, where the label order
    is another one, or where `gain` = 1 − (teacher's errors / majority class's errors) lies below
    `minimum_gain`.
    """
    logits = answers.logits
    if logits.shape != (len(gold), len(labels)):
        raise ValueError(f"logits {logits.shape} do not go with {(len(gold), len(labels))}")
    _check_order(labels, answer_labels, split)
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise CacheError(
            f"{bad.sum():,} of {len(gold):,} {split} rows have teacher logits that are not finite "
            f"(the first is row {int(np.flatnonzero(bad)[0]) + 1}): "
            "run `bert-kd logits verify` on the cache, then `bert-kd cache-logits`"
        )
    labelled = gold >= 0
    if not labelled.any():
        return Gate(len(gold), 0, float("nan"), float("nan"), float("nan"))
    truth = gold[labelled]
    predicted = logits[labelled].argmax(axis=1)
    accuracy = float((predicted == truth).mean())
    counts = np.bincount(truth, minlength=len(labels))
    majority = float(counts.max() / len(truth))
    if majority < 1:
        gain = 1 - (1 - accuracy) / (1 - majority)
    else:
        # One class alone makes no errors to avoid; a teacher that is always right is still fine.
        gain = 1.0 if accuracy == 1 else 0.0
    if gain < minimum_gain:
        raise CacheError(
            f"the teacher is right on {accuracy:.1%} of the {len(truth):,} labelled {split} rows, "
            f"always saying '{labels[int(counts.argmax())]}' on {majority:.1%}: that avoids "
            f"{gain:.1%} of the errors, and {minimum_gain:.1%} are asked for "
            f"(logits.minimum_gain). {_hint(labels, truth, predicted, accuracy)}"
        )
    return Gate(len(gold), len(truth), accuracy, majority, gain)


def _check_order(labels: Sequence[str], answer_labels: Sequence[str] | None, split: str) -> None:
    if answer_labels is None or tuple(answer_labels) == tuple(labels):
        return
    column_order(answer_labels, labels, f"the answers to {split}")
    raise CacheError(
        f"the answers to {split} have the labels in the order {', '.join(answer_labels)}, the data "
        f"in the order {', '.join(labels)}: read them with read_teachers, which reorders them"
    )


def _hint(
    labels: Sequence[str],
    truth: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    accuracy: float,
) -> str:
    """Return what to do; where the columns seem to be exchanged, say so."""
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (predicted, truth), 1)  # [answered, gold]
    meant = counts.argmax(axis=1)
    renamed = float(counts.max(axis=1).sum() / len(truth))
    if sorted(meant) == list(range(len(labels))) and renamed > accuracy:
        return (
            f"With the labels in the order {', '.join(labels[index] for index in meant)} it would "
            f"be right on {renamed:.1%}: check the teacher's label order"
        )
    return (
        "Check that the teacher was trained on this data and these labels, train it better, or "
        "lower logits.minimum_gain to learn from it all the same"
    )
