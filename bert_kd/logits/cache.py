"""The logit cache: a folder of teacher answers, found by row key; it only ever grows.

`manifest.json` says whose answers these are; each `part-*.parquet` holds some of them (see
`shard`). Any number of processes may write to one folder: each append is a new file under a name
of its own, written aside, flushed and renamed. Where two wrote an answer to the same key, the
shard that is first by name, the older one, wins.

Every read compares checksums. A damaged shard is named, renamed to `….damaged`, and its rows
count as missing: `missing` (caching) checks each shard as a whole when it first meets it and goes
on; `lookup` (training) raises CacheError where it needed those rows. What makes answers, combines
or judges them lies elsewhere.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_kd.data.keys import KEY_DTYPE, Keys, hex_keys, join_keys
from bert_kd.errors import CacheError
from bert_kd.logits import inspection
from bert_kd.logits.folder import Damage, ShardFolder
from bert_kd.logits.index import KeyIndex, group_keys, index_keys
from bert_kd.logits.inspection import Stats, Verification
from bert_kd.logits.manifest import Manifest, read_manifest, write_manifest
from bert_kd.logits.shard import Features, Logits, Shard, shard_schema, write_shard

__all__ = ["Answers", "Damage", "LogitCache", "Manifest", "Stats", "Verification"]


@dataclass(frozen=True)
class Answers:
    """What a teacher answered, row by row."""

    logits: Logits  # [rows, classes]
    features: Features | None = None  # [rows, feature_size]


@dataclass(frozen=True)
class LogitCache:
    """The cache in `folder`. Make one with `create` or `open`."""

    folder: Path
    manifest: Manifest
    _seen: set[str] = field(default_factory=set, repr=False, compare=False)
    """Shards whose keys are in `_known`."""
    _known: list[KeyIndex] = field(default_factory=list, repr=False, compare=False)
    """Their keys; each index is over twice as long as the next: joining stays cheap."""

    @staticmethod
    def create(folder: Path, manifest: Manifest) -> LogitCache:
        """Open the cache in `folder`, made new where there is none; several may do so at once.

        Raises CacheError where the folder holds a cache that `manifest` does not describe (its
        facts aside).
        """
        folder.mkdir(parents=True, exist_ok=True)
        if read_manifest(folder) is None:
            write_manifest(folder, manifest)
        cache = LogitCache.open(folder)
        differences = cache.manifest.differences(manifest)
        if differences:
            raise CacheError(
                f"the logit cache in {folder} is another one ({'; '.join(differences)}): "
                "use another folder, or remove this one if its answers are no longer needed"
            )
        cache._shards.remove_leftovers()
        return cache

    @staticmethod
    def open(folder: Path) -> LogitCache:
        """Open an existing cache; only its manifest is read. Raises CacheError if there is none."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise CacheError(f"{folder} holds no logit cache: run `bert-kd cache-logits` first")
        return LogitCache(folder, manifest)

    @property
    def _schema(self) -> Any:
        manifest = self.manifest
        return shard_schema(manifest.teacher, manifest.labels, manifest.feature_size)

    @property
    def _shards(self) -> ShardFolder:
        return ShardFolder(self.folder, self._schema)

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return which of `keys` have no answer yet, shape [rows]; other writers are noticed.

        A shard met for the first time is read and checked as a whole, so that a caching run finds
        every damage: that costs little beside a teacher pass. Known keys take 16 bytes of memory
        each.
        """
        self._refresh()
        absent = np.ones(len(keys), dtype=np.bool_)
        for index in self._known:
            absent &= index.find(keys) < 0
        return absent

    def append(self, keys: Keys, logits: Logits, features: Features | None = None) -> Path:
        """Write keys [rows], logits [rows, classes] and features [rows, size] as a new shard.

        Returns its path. Raises CacheError for values that are not finite, UserError where the
        disk is full; the cache is then what it was before.
        """
        # numpy gives joined keys the machine's byte order; on disk and in messages the bytes count.
        keys = np.asarray(keys, dtype=KEY_DTYPE)
        size = self.manifest.feature_size
        expected = (len(keys), len(self.manifest.labels))
        if len(keys) == 0 or logits.shape != expected:
            raise ValueError(f"{len(keys)} keys do not go with logits of shape {logits.shape}")
        if (features is None) != (size is None):
            raise ValueError(f"the feature size of this cache is {size}")
        logits = _finite(keys, logits, np.dtype(np.float32), "logits")
        if features is not None:
            if features.shape != (len(keys), size):
                raise ValueError(f"features of shape {features.shape}, not {(len(keys), size)}")
            features = _finite(keys, features, np.dtype(np.float16), "features")
        # The time stands first, so that of two answers to one key the older stays the one that
        # counts.
        name = f"part-{time.time_ns():016x}-{uuid.uuid4().hex[:8]}.parquet"
        write_shard(self.folder / name, self._schema, keys, logits, features)
        self._know([name], index_keys(keys))
        return self.folder / name

    def lookup(self, keys: Keys, features: bool = True) -> Answers:
        """Return the answers to `keys` row by row, in any order and however often one repeats.

        With `features` false, those of the cache are not read. Shards are read one after the
        other: memory goes with the query, not with the cache. Raises CacheError where an answer
        is missing or its shard is damaged.
        """
        query = _Query(keys, self.manifest, features)
        damaged: list[Damage] = []
        shards = self._shards
        for name in shards.names():
            if not query.open.any():
                break
            shards.use(name, query.take, damaged)
        if query.open.any():
            raise CacheError(self._describe_missing(query, damaged))
        return query.answers()

    def verify(self, tolerance: float = 1e-3) -> Verification:
        """Read every page, set damaged shards aside and compare repeated answers."""
        return inspection.verify(self._shards, len(self.manifest.labels), tolerance)

    def stats(self) -> Stats:
        """Return figures over all rows; every page of keys and logits is read."""
        return inspection.stats(self._shards, self.manifest)

    def _refresh(self) -> None:
        """Take in the keys of shards that are new in the folder."""
        shards = self._shards
        names = shards.names()
        if not self._seen <= set(names):
            # One was set aside or removed meanwhile: what it held is no longer known.
            self._seen.clear()
            self._known.clear()
        fresh = [name for name in names if name not in self._seen]
        found = [shards.use(name, inspection.read_whole, []) for name in fresh]
        whole = [keys for keys in found if keys is not None]
        if whole:
            here = [name for name, keys in zip(fresh, found, strict=True) if keys is not None]
            self._know(here, index_keys(join_keys(whole)))

    def _know(self, names: list[str], index: KeyIndex) -> None:
        self._seen.update(names)
        self._known.append(index)
        while len(self._known) > 1 and len(self._known[-2]) <= 2 * len(self._known[-1]):
            self._known[-2:] = [self._known[-2].joined(self._known[-1])]

    def _describe_missing(self, query: _Query, damaged: list[Damage]) -> str:
        absent = query.open[query.group]
        key = hex_keys(query.keys[absent][:1])[0]
        text = (
            f"{absent.sum():,} of {len(absent):,} rows have no answer in the logit cache "
            f"{self.folder} (the first one's key is {key})"
        )
        if damaged:
            named = ", ".join(f"{damage.shard}: {damage.reason}" for damage in damaged)
            text += f"; damaged shards were set aside ({named})"
        return f"{text}: {self.manifest.remedy}"


class _Query:
    """Keys asked for, and the answers found so far."""

    def __init__(self, keys: Keys, manifest: Manifest, features: bool) -> None:
        self.keys = np.asarray(keys, dtype=KEY_DTYPE)
        self.index, self.first, self.group = group_keys(keys)
        self.open = np.ones(len(self.index), dtype=np.bool_)  # [distinct keys]: no answer yet
        self.logits = np.empty((len(keys), len(manifest.labels)), dtype=np.float32)
        size = manifest.feature_size if features else None
        self.features = None if size is None else np.empty((len(keys), size), dtype=np.float16)

    def take(self, shard: Shard) -> None:
        """Take what is still asked for; of a key that repeats in the shard, the first row."""
        for part in range(len(shard)):
            found = self.index.find(shard.keys(part))  # [rows of the part], −1: not asked for
            rows = np.flatnonzero((found >= 0) & self.open[found])
            if len(rows) == 0:
                continue
            distinct, earliest = np.unique(found[rows], return_index=True)
            rows, target = rows[earliest], self.first[distinct]
            self.logits[target] = shard.logits(part)[rows]
            if self.features is not None:
                self.features[target] = shard.features(part)[rows]
            self.open[distinct] = False

    def answers(self) -> Answers:
        """Return the answers, those of repeated keys filled in."""
        source = self.first[self.group]  # [rows]: where the answer to this row's key was put
        again = np.flatnonzero(source != np.arange(len(source)))
        self.logits[again] = self.logits[source[again]]
        if self.features is not None:
            self.features[again] = self.features[source[again]]
        return Answers(self.logits, self.features)


def _finite(keys: Keys, values: npt.NDArray[Any], kind: np.dtype[Any], what: str) -> Any:
    """Return `values` as `kind`; raise CacheError where one then is not finite."""
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype=kind)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise CacheError(
            f"the teacher's {what} of {bad.sum():,} of {len(keys):,} rows are not finite in {kind} "
            f"(the first one's key is {hex_keys(keys[bad][:1])[0]}): nothing was stored; check "
            "that the teacher's training did not diverge, or use fp32 instead of bf16"
        )
    return values
