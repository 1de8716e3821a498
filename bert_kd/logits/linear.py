"""A linear model of word n-grams, which learns from gold labels in seconds: what a teacher has to
beat (`reference.py`), and who teaches where none does (`teacher/linear.py`).

Of Chinese, a word is a character here. A row that the model was fitted to would be answered as it
was told; so each of train's rows is answered by a model of the others (`cross_fit`), and what these
answers show of how sure the model may be sets the scale of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from bert_kd.config import LINEAR
from bert_kd.data.rows import Rows
from bert_kd.errors import CacheError
from bert_kd.logits.calibration import fit_temperature
from bert_kd.logits.shard import Logits
from bert_kd.store import fingerprint

if TYPE_CHECKING:
    from bert_kd.data.prepare import Prepared

Ints = npt.NDArray[np.int64]

UNIT = r"[㐀-䶿一-鿿]|[^\W㐀-䶿一-鿿]+"
"""A Chinese character, or a run of other letters and digits."""
_UNIT, _MASK = re.compile(UNIT), re.compile(r"\[MASK\]|<mask>")
MOST_CHARACTERS = 2000
"""Of a text that it reads."""
MOST_FEATURES = 200_000
INVERSE_PENALTY = 0.3
FORMAT = 1
"""Changes whenever the same rows would be answered otherwise."""
FOLDS = 5
"""Parts of train; each is answered by a model of the others."""


@dataclass(frozen=True)
class LinearModel:
    """The model fitted to all rows. Make one with `fit` or `cross_fit`."""

    vectorizer: Any
    classifier: Any
    classes: int
    temperature: float = 1.0

    def logits(self, texts: Sequence[str]) -> Logits:
        """Return logits [texts, classes]: its scores divided by the temperature."""
        found = _scores(self.classifier, self.vectorizer.transform(texts), self.classes)
        return np.asarray(found / self.temperature, dtype=np.float32)


@dataclass(frozen=True)
class CrossFitted:
    """The model of all rows, and what models of the others answer to each row."""

    model: LinearModel
    logits: Logits  # [rows, classes]
    accuracy: float
    """Of these answers."""


def identify(prepared: Prepared) -> str:
    """Return the fingerprint of the model that is cross-fitted to a run's train split."""
    told = fingerprint(prepared.fingerprints["train"], prepared.labels, FORMAT)
    return f"{LINEAR}-{told}"


def labelled_rows(rows: Rows, most: int) -> Rows:
    """Return the rows with a gold label; of more than `most` so many, drawn by chance, always the
    same.
    """
    learned = np.flatnonzero(rows.labels >= 0)
    if len(learned) > most:
        learned = np.random.default_rng(0).choice(learned, most, replace=False)
    return rows.take(learned)


def read_as(texts: Sequence[str], texts_b: Sequence[str] | None) -> list[str]:
    """Return what the model reads of texts or pairs: their words in small letters, masked ones left
    out; a pair as one text.
    """
    if texts_b is None:
        return [_words(text) for text in texts]
    return [
        f"{_words(first)}\n{_words(second)}" for first, second in zip(texts, texts_b, strict=True)
    ]


def folds_of(read: Sequence[str]) -> Ints:
    """Return the fold of each text, as the model reads it: equal ones are in the same."""
    return np.array([crc32(text.encode("utf-8", "replace")) % FOLDS for text in read], np.int64)


def _words(text: str) -> str:
    return " ".join(_UNIT.findall(_MASK.sub(" ", text[:MOST_CHARACTERS]).lower()))


def fit(texts: Sequence[str], labels: Ints, classes: int) -> LinearModel | None:
    """Return the model of these texts; None where they hold no words, or fewer than two classes."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    if len(np.unique(labels)) < 2:
        return None
    vectorizer = TfidfVectorizer(
        token_pattern=UNIT, ngram_range=(1, 2), max_features=MOST_FEATURES, sublinear_tf=True
    )
    try:
        learned = vectorizer.fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return None
    classifier = LinearSVC(C=INVERSE_PENALTY, random_state=0).fit(learned, labels)
    return LinearModel(vectorizer, classifier, classes)


def cross_fit(texts: Sequence[str], labels: Ints, classes: int) -> CrossFitted | None:
    """Return the model of these texts, as `read_as` gives them, with answers to each of them by
    models of the other folds. None as in `fit`, and where these answers are no better than chance.
    """
    model = fit(texts, labels, classes)
    if model is None:
        return None
    folds = folds_of(texts)
    # A row that nobody could answer has 0 throughout, which says nothing.
    answers = np.zeros((len(labels), classes), dtype=np.float32)
    answered = np.zeros(len(labels), dtype=np.bool_)
    for fold in range(FOLDS):
        asked = np.flatnonzero(folds == fold).tolist()
        others = np.flatnonzero(folds != fold).tolist()
        apart = fit([texts[row] for row in others], labels[others], classes)
        if asked and apart is not None:
            answers[asked] = apart.logits([texts[row] for row in asked])
            answered[asked] = True
    temperature = _temperature(answers[answered], labels[answered])
    if temperature is None:
        return None
    right = float((answers[answered].argmax(axis=1) == labels[answered]).mean())
    scaled = replace(model, temperature=temperature)
    return CrossFitted(scaled, answers / np.float32(temperature), right)


def _temperature(answers: Logits, labels: Ints) -> float | None:
    """Return the temperature that fits the answers; None where none makes them better than the same
    answer to all.

    One more row is thought wrong, the middlemost by margin: where all are right, as with classes
    that single words tell, the likeliest temperature is 0.
    """
    if not len(labels):
        return None
    ordered = np.sort(answers, axis=1)
    middle = int(np.argsort(ordered[:, -1] - ordered[:, -2])[len(labels) // 2])
    second = int(np.argsort(answers[middle])[-2])
    more = np.concatenate([answers, answers[middle : middle + 1]])
    try:
        return fit_temperature(more, np.append(labels, second), "linear model").temperature
    except CacheError:
        return None


def _scores(classifier: Any, asked: Any, classes: int) -> npt.NDArray[np.float64]:
    """Return scores [rows, classes]; a class that it never saw is one below a row's lowest."""
    margins = classifier.decision_function(asked)
    if margins.ndim == 1:  # of two classes, how far on the side of the second
        margins = np.stack([-margins, margins], axis=1) / 2
    found = np.repeat(margins.min(axis=1, keepdims=True) - 1, classes, axis=1)
    found[:, classifier.classes_] = margins
    return np.asarray(found, dtype=np.float64)
