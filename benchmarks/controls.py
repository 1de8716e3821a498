"""Control models: what simpler means reach on the same rows.

Here: TF-IDF with logistic regression, fastText, and static vectors (each piece of the vocabulary
run once through the teacher's base model, in the manner of model2vec) with logistic regression. All
learn from the gold labels of train; their settings are chosen on validation, from the short grids
below. Of pairs, the linear models see what the two sides share and what they do not, fastText
sees both sides' words apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from static_vectors import StaticVectors, static_vectors

from bert_kd.data.rows import Rows
from bert_kd.errors import MissingExtra, UserError

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Settings = Mapping[str, Any]

UNIT = re.compile(r"[㐀-䶿一-鿿]|[^\W㐀-䶿一-鿿]+|[^\w\s]")
"""A Chinese character, a run of other letters and digits, or a punctuation mark."""
MOST_FEATURES = 300_000
"""n-grams that TF-IDF keeps of each kind, the most frequent ones."""
CHARACTERS = (2, 5)
INVERSE_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""C of the logistic regressions, of standard scikit-learn meaning."""
FASTTEXT_BUCKETS = 200_000
"""Rows for hashed bigrams. With one thread, fastText fills the first tenth of its table at random
and leaves the rest as the memory comes. So large a table comes from the system, as zeros; in a
small one there are leftovers, of which the training diverges or differs from run to run."""

TFIDF, FASTTEXT, STATIC = "TF-IDF + LR", "fastText", "static vectors + LR"
ENGINES = {TFIDF: "scikit-learn", FASTTEXT: "fasttext", STATIC: "NumPy, scikit-learn"}
"""What each answers in."""
GRIDS: Mapping[str, tuple[Settings, ...]] = {
    TFIDF: tuple(
        {"characters": characters, "C": c}
        for characters, c in product((False, True), INVERSE_PENALTIES)
    ),
    FASTTEXT: tuple(
        {"lr": rate, "epoch": epochs, "dim": 100, "wordNgrams": 2, "bucket": FASTTEXT_BUCKETS}
        for rate, epochs in product((0.1, 0.5, 1.0), (5, 25))
    ),
    STATIC: tuple(
        {"weighted": weighted, "C": c}
        for weighted, c in product((False, True), (0.001, 0.01, 0.1, 1.0, 10.0))
    ),
}
"""Every setting that is tried, by control."""


class Diverged(UserError):
    """A control whose weights went beyond all bounds in training."""


class Control(Protocol):
    """A trained control. `parameters` counts every number that it answers with."""

    @property
    def parameters(self) -> int: ...

    @property
    def parameters_without_embedding(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def predict(self, texts: Sequence[str], texts_b: Sequence[str] | None) -> Ints:
        """Return the predicted classes of `texts` (and `texts_b`), shape [rows]."""


Fit = Callable[[Rows, Settings, int], Control]
"""Fits a control on rows, with settings and a seed."""


@dataclass(frozen=True)
class Choice:
    """The settings with the best validation accuracy (the first of equals), and all that were
    tried.
    """

    settings: dict[str, Any]
    accuracy: float
    tried: tuple[tuple[dict[str, Any], float], ...] = field(repr=False)


def choose(fit: Fit, grid: Sequence[Settings], train: Rows, validation: Rows) -> Choice:
    """Fit every setting of `grid` on `train` and return the best on `validation`.

    A setting that diverges has an accuracy of 0.
    """
    tried = []
    for settings in grid:
        try:
            control = fit(train, settings, 1)
        except Diverged:
            tried.append((dict(settings), 0.0))
            continue
        found = control.predict(validation.texts, validation.texts_b)
        tried.append((dict(settings), float((found == validation.labels).mean())))
    settings, accuracy = max(tried, key=lambda entry: entry[1])
    return Choice(settings, accuracy, tuple(tried))


def units(text: str) -> list[str]:
    """Return the lower-cased words, Chinese characters and punctuation marks of a text."""
    return UNIT.findall(text.lower())


# --- linear models -----------------------------------------------------------------------------


class Features(Protocol):
    """Fitted features of texts; of their parameters, `table` are those of an embedding."""

    @property
    def parameters(self) -> int: ...

    @property
    def table(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a matrix [rows, features], sparse or dense."""


@dataclass(frozen=True)
class Linear:
    """A logistic regression over features."""

    features: Features
    classes: Ints  # [classes]
    weights: Vectors  # [features, classes], of two classes [features, 1]
    bias: Vectors  # [classes], of two classes [1]

    @property
    def parameters(self) -> int:
        return self.features.parameters + self._weights

    @property
    def parameters_without_embedding(self) -> int:
        return self.parameters - self.features.table

    @property
    def bytes(self) -> int:
        """Weights as float32, beside what the features need."""
        return self.features.bytes + 4 * self._weights

    @property
    def _weights(self) -> int:
        return int(self.weights.size + self.bias.size)

    def predict(self, texts: Sequence[str], texts_b: Sequence[str] | None) -> Ints:
        """Return the predicted classes, shape [rows]."""
        scores = _sides(self.features, texts, texts_b) @ self.weights + self.bias
        if scores.shape[1] == 1:
            scores = np.concatenate([-scores, scores], axis=1)
        found: Ints = self.classes[scores.argmax(axis=1)]
        return found


def _sides(features: Features, texts: Sequence[str], texts_b: Sequence[str] | None) -> Any:
    """Return the features of texts, or of pairs: |a − b| beside a · b, [rows, 2 · features]."""
    first = features(texts)
    if texts_b is None:
        return first
    second = features(texts_b)
    if isinstance(first, np.ndarray):
        return np.concatenate([abs(first - second), first * second], axis=1)
    from scipy.sparse import hstack

    return hstack([abs(first - second), first.multiply(second)], format="csr")


def _fit_linear(features: Features, train: Rows, inverse_penalty: float) -> Linear:
    from sklearn.linear_model import LogisticRegression

    matrix = _sides(features, train.texts, train.texts_b)
    model = LogisticRegression(C=inverse_penalty, max_iter=2000, tol=1e-3)
    model.fit(matrix, train.labels)
    # Laid out as they are read: scikit-learn's own would be copied for every single text.
    weights = np.ascontiguousarray(model.coef_.T, dtype=np.float32)
    return Linear(features, model.classes_, weights, model.intercept_.astype(np.float32))


class Remembered:
    """Features by settings, fitted once for a grid that asks for the same ones again and again."""

    def __init__(self, make: Callable[[Rows, Settings], Features], telling: Sequence[str]) -> None:
        self._make, self._telling = make, telling
        self._fitted: dict[tuple[Any, ...], Features] = {}

    def fit(self, train: Rows, settings: Settings, seed: int) -> Linear:
        """Fit a linear control; `seed` has no effect on it."""
        key = tuple(settings[name] for name in self._telling)
        if key not in self._fitted:
            self._fitted = {key: self._make(train, settings)}  # one at a time: they can be large
        return _fit_linear(self._fitted[key], train, settings["C"])


@dataclass(frozen=True)
class TfIdf:
    """TF-IDF of word 1- and 2-grams, and of character n-grams within words where asked for."""

    vectorisers: tuple[Any, ...]

    @property
    def table(self) -> int:
        return 0

    @property
    def parameters(self) -> int:
        return sum(len(one.vocabulary_) for one in self.vectorisers)

    @property
    def bytes(self) -> int:
        """The n-grams in UTF-8 and a float32 for each."""
        terms = (term for one in self.vectorisers for term in one.vocabulary_)
        return sum(len(term.encode()) + 4 for term in terms)

    def __call__(self, texts: Sequence[str]) -> Any:
        from scipy.sparse import hstack

        return hstack([one.transform(texts) for one in self.vectorisers], format="csr")


def _tfidf(train: Rows, settings: Settings) -> TfIdf:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [*train.texts, *(train.texts_b or ())]
    alike: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    alike["max_features"] = MOST_FEATURES
    words = TfidfVectorizer(tokenizer=units, token_pattern=None, ngram_range=(1, 2), **alike)
    found = [words.fit(texts)]
    if settings["characters"]:
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=CHARACTERS, **alike)
        found.append(characters.fit(texts))
    return TfIdf(tuple(found))


def tfidf() -> Fit:
    """Return the fit of TF-IDF with logistic regression."""
    return Remembered(_tfidf, ["characters"]).fit


# --- static vectors ----------------------------------------------------------------------------


def static(base: Path | str) -> Fit:
    """Return the fit of static vectors by the model `base` with logistic regression."""
    plain: dict[str, StaticVectors] = {}  # the model is asked once

    def make(train: Rows, settings: Settings) -> StaticVectors:
        if "vectors" not in plain:
            plain["vectors"] = static_vectors(train, base)
        return plain["vectors"].weighted() if settings["weighted"] else plain["vectors"]

    return Remembered(make, ["weighted"]).fit


# --- fastText ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FastText:
    """A supervised fastText model (Joulin et al. 2017)."""

    model: Any
    bytes: int

    @property
    def parameters(self) -> int:
        return self._table + int(np.prod(self.model.get_output_matrix().shape))

    @property
    def parameters_without_embedding(self) -> int:
        return self.parameters - self._table

    @property
    def _table(self) -> int:
        return int(np.prod(self.model.get_input_matrix().shape))

    def predict(self, texts: Sequence[str], texts_b: Sequence[str] | None) -> Ints:
        """Return the predicted classes, shape [rows]."""
        labels, _ = self.model.predict(list(_lines(texts, texts_b)))
        found = [int(best[0].rpartition("__")[2]) for best in labels]
        return np.array(found, dtype=np.int64)


def fasttext() -> Fit:
    """Return the fit of fastText. Raises MissingExtra where its package is not installed."""
    with _quiet_import():
        try:
            import fasttext
        except ImportError:
            raise MissingExtra("fasttext-numpy2", "bench") from None

    def fit(train: Rows, settings: Settings, seed: int) -> FastText:
        lines = zip(train.labels, _lines(train.texts, train.texts_b), strict=True)
        with TemporaryDirectory() as aside:
            file = Path(aside) / "train.txt"
            file.write_text("".join(f"__label__{label} {line}\n" for label, line in lines), "utf-8")
            try:
                # One thread: with several, the same seed does not give the same model.
                model = fasttext.train_supervised(
                    str(file), thread=1, verbose=0, minCount=1, seed=seed, **settings
                )
            except RuntimeError as error:
                if "NaN" not in str(error):
                    raise
                raise Diverged(
                    f"fastText diverges with {dict(settings)} and seed {seed}: take a lower 'lr' "
                    "in GRIDS of benchmarks/controls.py"
                ) from None
            model.save_model(str(Path(aside) / "model.bin"))
            return FastText(model, (Path(aside) / "model.bin").stat().st_size)

    return fit


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Without the warnings of how the extension module was built."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lines(texts: Sequence[str], texts_b: Sequence[str] | None) -> Iterator[str]:
    """Yield a line of units per text; of a pair, the second side's are marked as such."""
    if texts_b is None:
        yield from (" ".join(units(text)) for text in texts)
        return
    for text, other in zip(texts, texts_b, strict=True):
        yield " ".join([*units(text), *(f"b:{unit}" for unit in units(other))])
