"""Word classes learned from the labelled text: a part-of-speech table for any language.

Words of one class stand between the same neighbours: what a tagger would call adjectives, past
participles, place names. No tagger and no licence is needed, and Chinese characters get classes
too. Each frequent word is described by how often each of the most frequent words stands left and
right of it (positive pointwise mutual information), reduced by SVD and grouped by k-means
(Schütze 1995, "Distributional part-of-speech tagging").
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_kd.data.units import is_word, split_units

MINIMUM_COUNT = 3
"""A rarer word has too few neighbours to be told by; it is in no class and is not replaced."""
MOST_WORDS = 20_000
CONTEXTS = 250
"""The most frequent units, whose places left and right of a word describe it."""
DIMENSIONS = 50
WORDS_PER_CLASS = 25
MOST_CLASSES = 100

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WordClasses:
    """Words that can stand for each other."""

    class_of: Mapping[str, int]
    words: Sequence[Sequence[str]]
    """By class."""
    cumulated: Sequence[Sequence[int]]
    """Running sums of the words' counts, by class."""

    def draw(self, word: str, source: random.Random) -> str | None:
        """Return another word of the same class, by frequency; None where there is none.

        Tang et al. 2019, section 4.3: a word is replaced by one of the same tag, drawn from the
        unigram distribution of that tag.
        """
        number = self.class_of.get(word)
        if number is None or len(self.words[number]) < 2:
            return None
        sums, words = self.cumulated[number], self.words[number]
        while (drawn := words[bisect_right(sums, source.random() * sums[-1])]) == word:
            continue
        return drawn


def learn_classes(texts: Iterable[str], seed: int) -> WordClasses:
    """Return the word classes of `texts`; the same texts and seed give the same classes."""
    numbers: dict[str, int] = {}
    stream: list[npt.NDArray[np.int32]] = []
    for text in texts:
        units = split_units(text).words
        stream.append(
            np.array(
                [-1, *(numbers.setdefault(unit, len(numbers)) for unit in units), -1], np.int32
            )
        )
    ids = np.concatenate([np.zeros(0, np.int32), *stream])  # [units], −1: a text's border
    names = list(numbers)
    counts = np.bincount(ids[ids >= 0], minlength=len(names))
    # By falling count, equal ones by name: not by where they first stood.
    ranked = sorted(range(len(names)), key=lambda number: (-int(counts[number]), names[number]))
    known = [n for n in ranked if counts[n] >= MINIMUM_COUNT and is_word(names[n])][:MOST_WORDS]
    if len(known) < 2:
        return WordClasses({}, (), ())
    vectors = _reduced(_contexts(ids, known, ranked[:CONTEXTS], len(names)))
    classes = _grouped(vectors, seed)
    words: list[list[str]] = [[] for _ in range(int(classes.max()) + 1)]
    tallies: list[list[int]] = [[] for _ in words]
    for number, group in zip(known, classes.tolist(), strict=True):
        words[group].append(names[number])
        tallies[group].append(int(counts[number]))
    return WordClasses(
        {names[number]: group for number, group in zip(known, classes.tolist(), strict=True)},
        words,
        [list(accumulate(tally)) for tally in tallies],
    )


def _contexts(
    ids: npt.NDArray[np.int32], words: Sequence[int], contexts: Sequence[int], total: int
) -> Floats:
    """Return the positive pointwise mutual information of words with what stands left and right of
    them, shape [words, 2 × (contexts + 1)].

    The last context of each side is the border of the text.
    """
    row = np.full(total + 1, -1, np.int64)  # the last place is that of −1
    row[list(words)] = np.arange(len(words))
    column = np.full(total + 1, -1, np.int64)
    column[list(contexts)] = np.arange(len(contexts))
    column[-1] = width = len(contexts)
    sides = []
    for word, beside in ((ids[1:], ids[:-1]), (ids[:-1], ids[1:])):
        at, to = row[word], column[beside]
        both = (at >= 0) & (to >= 0)
        pairs = at[both] * (width + 1) + to[both]
        size = len(words) * (width + 1)
        sides.append(np.bincount(pairs, minlength=size).reshape(len(words), width + 1))
    counts = np.concatenate(sides, axis=1).astype(np.float32)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * counts.sum() / expected)
    return np.where(np.isfinite(information), np.maximum(information, 0.0), 0.0).astype(np.float32)


def _reduced(values: Floats) -> Floats:
    """Return the rows on their first principal axes, each of length 1."""
    _, axes = np.linalg.eigh(values.T.astype(np.float64) @ values)  # rising eigenvalues
    reduced = values @ axes[:, ::-1][:, :DIMENSIONS]
    reduced /= np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-9)
    return np.asarray(reduced, dtype=np.float32)


def _grouped(vectors: Floats, seed: int) -> npt.NDArray[np.int64]:
    """Return the class of each row."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(vectors, axis=0))
    wanted = min(max(len(vectors) // WORDS_PER_CLASS, 1), MOST_CLASSES, distinct)
    means: Any = KMeans(wanted, n_init=1, max_iter=50, random_state=seed)
    found: npt.NDArray[np.int64] = means.fit(vectors).labels_.astype(np.int64)
    return found
