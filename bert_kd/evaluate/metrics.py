"""How good answers are: accuracy, F1, calibration and agreement with the teacher, with intervals.

Here: `measure` (one model on one split) and `worst_errors`. Everything takes arrays of logits; no
model runs here and nothing is read from disk. Not here: models against each other
(`comparisons.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_kd.errors import DataError
from bert_kd.evaluate.bootstrap import Floats, Ints, draws, interval

BINS = 15
"""Equal-width bins of the calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class. None where a share has no denominator: never answered (precision), no gold rows
    (recall), neither.
    """

    label: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers whose probability lies in (low, high]; means are None where there are none."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Metrics:
    """One model's answers on one split. Intervals are (low, high); `confusion` is [gold][answer] in
    rows.
    """

    rows: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    nll: float
    ece: float
    agreement: float | None
    agreement_interval: tuple[float, float] | None
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class WrongAnswer:
    """A row that the model got wrong, with the probability that it gave to its answer."""

    text: str
    text_b: str | None
    gold: str
    answer: str
    probability: float
    teacher_answer: str | None


def measure(
    logits: npt.ArrayLike,
    gold: npt.ArrayLike,
    labels: Sequence[str],
    *,
    teacher_logits: npt.ArrayLike | None = None,
    bootstrap_samples: int,
    seed: int,
) -> Metrics:
    """Return all metrics of `logits` [rows, classes] against `gold` [rows], columns in the order of
    `labels`.

    For a model that gives probabilities, pass their logarithm. Macro-F1 is the mean over the
    classes that occur in the gold labels or the answers (scikit-learn's default). NLL is the mean
    of −log p(gold), natural logarithm. ECE is that of Guo et al. 2017, equation 3, over 15
    equal-width bins of the largest probability. Agreement is the share of rows on which the
    teacher's largest logit stands in the same column.

    Raises DataError where there are no rows, a row has no gold label, or an answer is not finite.
    """
    answers = _checked(logits, len(labels), "the model's logits")
    truth = checked_gold(gold, len(labels), len(answers))
    rows, classes = answers.shape
    generator = np.random.default_rng(seed)

    log_probabilities = _log_softmax(answers)  # [rows, classes]
    predicted = answers.argmax(axis=1)  # [rows]
    confusion = np.bincount(truth * classes + predicted, minlength=classes * classes)
    confusion = confusion.reshape(classes, classes)  # [gold, answer]
    accuracy_interval, macro_f1_interval = _resampled_confusion(
        confusion, bootstrap_samples, generator
    )

    agreement, agreement_interval = None, None
    if teacher_logits is not None:
        taught = _checked(teacher_logits, classes, "the teacher's logits")
        if len(taught) != rows:
            raise ValueError(f"{rows} rows of logits, but {len(taught)} of the teacher's")
        same = int((taught.argmax(axis=1) == predicted).sum())
        agreement = same / rows
        agreement_interval = interval(
            generator.binomial(rows, agreement, size=bootstrap_samples) / rows
        )

    confidence = np.exp(log_probabilities.max(axis=1))  # [rows]
    bins = _reliability(confidence, predicted == truth)
    return Metrics(
        rows=rows,
        accuracy=float((predicted == truth).mean()),
        accuracy_interval=accuracy_interval,
        macro_f1=float(_macro_f1(confusion[None].astype(np.float64))[0]),
        macro_f1_interval=macro_f1_interval,
        nll=float(-log_probabilities[np.arange(rows), truth].mean()),
        ece=_calibration_error(bins, rows),
        agreement=agreement,
        agreement_interval=agreement_interval,
        classes=_per_class(confusion, labels),
        confusion=tuple(tuple(int(cell) for cell in line) for line in confusion),
        reliability=bins,
    )


def worst_errors(
    texts: Sequence[str],
    texts_b: Sequence[str] | None,
    logits: npt.ArrayLike,
    gold: npt.ArrayLike,
    labels: Sequence[str],
    *,
    teacher_logits: npt.ArrayLike | None = None,
    count: int,
) -> tuple[WrongAnswer, ...]:
    """Return at most `count` wrong answers, the most certain first (ties in the order given)."""
    answers = _checked(logits, len(labels), "the model's logits")
    truth = checked_gold(gold, len(labels), len(answers))
    predicted = answers.argmax(axis=1)
    confidence = np.exp(_log_softmax(answers).max(axis=1))
    taught = None
    if teacher_logits is not None:
        taught = _checked(teacher_logits, len(labels), "the teacher's logits").argmax(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return tuple(
        WrongAnswer(
            text=texts[row],
            text_b=None if texts_b is None else texts_b[row],
            gold=labels[truth[row]],
            answer=labels[predicted[row]],
            probability=float(confidence[row]),
            teacher_answer=None if taught is None else labels[taught[row]],
        )
        for row in worst
    )


def _checked(logits: npt.ArrayLike, classes: int, what: str) -> Floats:
    """Return logits as float64 [rows, classes], refusing what cannot be measured."""
    found = np.asarray(logits, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != classes:
        raise ValueError(f"{what} have the shape {list(found.shape)}, not [rows, {classes}]")
    if len(found) == 0:
        raise DataError("there are no rows to measure: prepare a split that has some")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise DataError(
            f"{what} of {len(bad)} of {len(found)} rows are not finite (first: row {bad[0]}): "
            "the model is broken; train or export it again"
        )
    return found


def checked_gold(gold: npt.ArrayLike, classes: int, rows: int) -> Ints:
    """Return gold labels as int64 [rows], refusing rows without one."""
    found = np.asarray(gold, dtype=np.int64)
    if found.shape != (rows,):
        raise ValueError(f"{rows} rows of logits, but gold labels of shape {list(found.shape)}")
    unlabelled = int((found < 0).sum())
    if unlabelled:
        raise DataError(
            f"{unlabelled} of {rows} rows have no gold label: only labelled splits can be measured"
        )
    if int(found.max()) >= classes:
        raise ValueError(f"gold label {found.max()} with {classes} classes")
    return found


def _log_softmax(logits: Floats) -> Floats:
    """Return the natural logarithm of softmax(logits), [rows, classes]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _macro_f1(confusion: Floats) -> Floats:
    """Return the macro-F1 of confusion matrices [samples, gold, answer], shape [samples]."""
    right = np.diagonal(confusion, axis1=1, axis2=2)  # [samples, classes]
    return _mean_f1(right, confusion.sum(axis=2), confusion.sum(axis=1))


def _mean_f1(right: Floats, gold: Floats, answered: Floats) -> Floats:
    """Return the mean F1 over the classes that occur, from counts [samples, classes]; F1 =
    2·right/(gold + answered).
    """
    total = gold + answered
    f1 = 2 * right / np.maximum(total, 1)
    return np.asarray(f1.sum(axis=1) / (total > 0).sum(axis=1))


def _resampled_confusion(
    confusion: Ints, samples: int, generator: np.random.Generator
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the intervals of accuracy and of macro-F1, from one set of samples."""
    classes = len(confusion)
    cells = np.flatnonzero(confusion)  # [kinds]
    of_gold = np.eye(classes)[cells // classes]  # [kinds, classes]
    of_answer = np.eye(classes)[cells % classes]  # [kinds, classes]
    accuracies, f1s = [], []
    for draw in draws(confusion.reshape(-1)[cells], samples, generator):
        right = draw @ (of_gold * of_answer)  # [samples, classes]
        accuracies.append(right.sum(axis=1) / confusion.sum())
        f1s.append(_mean_f1(right, draw @ of_gold, draw @ of_answer))
    return interval(np.concatenate(accuracies)), interval(np.concatenate(f1s))


def _per_class(confusion: Ints, labels: Sequence[str]) -> tuple[ClassMetrics, ...]:
    found = []
    for index, label in enumerate(labels):
        right = int(confusion[index, index])
        support, answered = int(confusion[index].sum()), int(confusion[:, index].sum())
        found.append(
            ClassMetrics(
                label=label,
                support=support,
                precision=right / answered if answered else None,
                recall=right / support if support else None,
                f1=2 * right / (support + answered) if support + answered else None,
            )
        )
    return tuple(found)


def _reliability(confidence: Floats, right: npt.NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    """Sort rows into the bins ((b − 1)/15, b/15] by confidence [rows]."""
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)  # [rows]
    rows = np.bincount(place, minlength=BINS)
    confidences = np.bincount(place, weights=confidence, minlength=BINS)
    rights = np.bincount(place, weights=right, minlength=BINS)
    return tuple(
        ReliabilityBin(
            low=index / BINS,
            high=(index + 1) / BINS,
            rows=int(rows[index]),
            confidence=float(confidences[index] / rows[index]) if rows[index] else None,
            accuracy=float(rights[index] / rows[index]) if rows[index] else None,
        )
        for index in range(BINS)
    )


def _calibration_error(bins: Sequence[ReliabilityBin], rows: int) -> float:
    """Return Σ (rows of the bin / rows) · |accuracy − confidence|."""
    return sum(
        entry.rows / rows * abs(entry.accuracy - entry.confidence)
        for entry in bins
        if entry.accuracy is not None and entry.confidence is not None
    )
