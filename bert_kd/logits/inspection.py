"""Looking at a logit cache as a whole: `verify` reads every page, `stats` gives its figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_kd.data.keys import Keys, join_keys
from bert_kd.logits.folder import Damage, ShardFolder
from bert_kd.logits.index import KeyIndex, group_keys, index_keys
from bert_kd.logits.manifest import Manifest
from bert_kd.logits.shard import Logits, Shard
from bert_kd.progress import progress


@dataclass(frozen=True)
class Verification:
    """What a reading of every page found."""

    shards: int
    rows: int
    keys: int
    """Distinct keys."""
    duplicates: int
    """Rows whose key an earlier row has."""
    disagreeing: int
    """Duplicates whose logits differ from the first answer by more than the tolerance."""
    largest_difference: float
    """Of a logit, between a duplicate and the first answer."""
    damaged: tuple[Damage, ...]
    """Shards set aside just now."""
    leftovers: tuple[str, ...]
    """Temporary files of killed writers, removed just now."""


@dataclass(frozen=True)
class Stats:
    """Figures of a cache, over all rows."""

    folder: Path
    manifest: Manifest
    rows: int
    keys: int
    """Distinct keys."""
    shards: int
    bytes: int
    mean: float
    """Of all logits, likewise the next three; NaN where the cache is empty."""
    deviation: float
    minimum: float
    maximum: float
    shares: dict[str, float]
    """Share of the rows whose largest logit is this label's."""
    damaged: tuple[str, ...]
    """Shards set aside, now or earlier, that still lie in the folder."""


def read_whole(shard: Shard) -> Keys:
    """Read and check every page of a shard; return its keys."""
    keys = []
    for group in range(len(shard)):
        keys.append(shard.keys(group))
        shard.logits(group)
        if shard.has_features:
            shard.features(group)
    return join_keys(keys)


def verify(folder: ShardFolder, classes: int, tolerance: float) -> Verification:
    """Read every page, set damaged shards aside, remove leftovers and compare repeated answers.

    Memory: 24 bytes a row of the cache, plus the logits of the keys that repeat.
    """
    damaged: list[Damage] = []
    whole: list[str] = []
    rows: list[Keys] = []
    names = folder.names()
    with progress("verifying", len(names), "shards") as advance:
        for name in names:
            keys = folder.use(name, read_whole, damaged)
            advance(1)
            if keys is not None:
                whole.append(name)
                rows.append(keys)
    index, _, group = group_keys(join_keys(rows))
    repeated = np.bincount(group, minlength=len(index)) > 1
    comparison = _Comparison(
        KeyIndex(index.high[repeated], index.low[repeated]), classes, tolerance
    )
    if repeated.any():
        for name in whole:
            folder.use(name, comparison.add, damaged)
    return Verification(
        shards=len(whole),
        rows=len(group),
        keys=len(index),
        duplicates=len(group) - len(index),
        disagreeing=comparison.disagreeing,
        largest_difference=comparison.largest,
        damaged=tuple(damaged),
        leftovers=folder.remove_leftovers(),
    )


class _Comparison:
    """Compares the rows of repeated keys with the first answer to each."""

    def __init__(self, repeated: KeyIndex, classes: int, tolerance: float) -> None:
        self.repeated = repeated
        self.tolerance = tolerance
        self.first = np.full((len(repeated), classes), np.nan, dtype=np.float32)
        self.disagreeing = 0
        self.largest = 0.0

    def add(self, shard: Shard) -> None:
        for group in range(len(shard)):
            found = self.repeated.find(shard.keys(group))
            rows = np.flatnonzero(found >= 0)
            if len(rows) == 0:
                continue
            logits = shard.logits(group)[rows]  # [repeating rows, classes]
            found = found[rows]
            _, earliest = np.unique(found, return_index=True)
            earliest = earliest[np.isnan(self.first[found[earliest], 0])]
            self.first[found[earliest]] = logits[earliest]
            difference = np.abs(logits - self.first[found]).max(axis=1)
            self.disagreeing += int((difference > self.tolerance).sum())
            self.largest = max(self.largest, float(difference.max()))


@dataclass
class _Moments:
    """Sums over rows of logits."""

    largest: npt.NDArray[np.int64]
    """Rows in which each class has the largest logit, [classes]."""
    rows: int = 0
    sum: float = 0.0
    squares: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    def add(self, logits: Logits) -> None:
        self.join(
            _Moments(
                np.bincount(logits.argmax(axis=1), minlength=len(self.largest)),
                len(logits),
                float(logits.sum(dtype=np.float64)),
                float(np.square(logits, dtype=np.float64).sum()),
                float(logits.min()),
                float(logits.max()),
            )
        )

    def join(self, other: _Moments) -> None:
        self.largest = self.largest + other.largest
        self.rows += other.rows
        self.sum += other.sum
        self.squares += other.squares
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)


@dataclass
class _Totals:
    """What `stats` gathers over the shards."""

    moments: _Moments
    keys: list[Keys] = field(default_factory=list)
    shards: int = 0
    bytes: int = 0


def stats(folder: ShardFolder, manifest: Manifest) -> Stats:
    """Return figures over all rows. Memory: 24 bytes a row of the cache."""
    classes = len(manifest.labels)
    totals = _Totals(_Moments(np.zeros(classes, dtype=np.int64)))

    def measure(shard: Shard) -> tuple[_Moments, list[Keys]]:
        moments = _Moments(np.zeros(classes, dtype=np.int64))
        keys = []
        for group in range(len(shard)):
            keys.append(shard.keys(group))
            moments.add(shard.logits(group))
        return moments, keys

    for name in folder.names():
        found = folder.use(name, measure, [])
        if found is not None:
            totals.moments.join(found[0])
            totals.keys += found[1]
            totals.shards += 1
            totals.bytes += (folder.folder / name).stat().st_size
    moments, values = totals.moments, totals.moments.rows * classes
    mean = moments.sum / values if values else float("nan")
    return Stats(
        folder=folder.folder,
        manifest=manifest,
        rows=moments.rows,
        keys=len(index_keys(join_keys(totals.keys))),
        shards=totals.shards,
        bytes=totals.bytes,
        mean=mean,
        deviation=float(np.sqrt(max(moments.squares / values - mean**2, 0))) if values else mean,
        minimum=moments.minimum if values else mean,
        maximum=moments.maximum if values else mean,
        shares={
            label: int(count) / max(moments.rows, 1)
            for label, count in zip(manifest.labels, moments.largest, strict=True)
        },
        damaged=folder.set_aside(),
    )
