"""Filling the logit cache (stage 03): the teacher's answers to all rows that have none yet.

Rows are read in windows of `rows_per_shard`; each window becomes one shard, so a killed writer
loses at most the window in hand. Texts are held a window at a time; row keys stay in memory, 17
bytes a distinct row. Several writers can share the work: each takes the rows that its part of the
keys falls to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bert_kd.config import LogitsConfig
from bert_kd.data.keys import KEY_DTYPE, Keys
from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import iterate_rows
from bert_kd.errors import CacheError, StageError
from bert_kd.hardware import precision_of
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.logits.index import KeyIndex, index_keys
from bert_kd.logits.manifest import read_manifest
from bert_kd.logits.word_vectors import has_word_vectors, write_word_vectors
from bert_kd.progress import clock, progress, say
from bert_kd.store import RunFolder, read_json
from bert_kd.teacher.card import CARD, Card, fingerprint_teacher, read_card

if TYPE_CHECKING:
    from bert_kd.teacher.model import Teacher

SPLITS = ("train", "transfer", "views", "validation", "test")
SAMPLE = 256
"""Rows on which the effect of bf16 is measured."""

Part = tuple[int, int]
"""(i, n): this writer takes the i-th of n shares of the keys, i from 1."""


@dataclass(frozen=True)
class Filled:
    """What a pass over the data did; rows are distinct ones, of this writer's part."""

    rows: int
    computed: int
    reused: int
    """Rows that had an answer already."""
    shards: int
    """Shards written."""
    folder: Path
    """Of the cache; of several teachers' caches the one that they lie in."""
    seconds: float
    cut: int
    """Computed rows whose text was longer than the teacher's maximum length."""

    def after(self, before: Filled | None) -> Filled:
        """Return this pass and one over some of the same rows before it as one."""
        if before is None:
            return self
        return replace(
            self,
            computed=before.computed + self.computed,
            reused=self.reused - before.computed,
            shards=before.shards + self.shards,
            seconds=round(before.seconds + self.seconds, 3),
            cut=before.cut + self.cut,
        )


def finished(
    name: str, folder: Path, rows: int, computed: int, shards: int, started: float, cut: int = 0
) -> Filled:
    """Return a pass that began at the monotonic time `started`, and say how it went; `name` is what
    the cache is called there.
    """
    seconds = round(time.monotonic() - started, 3)
    filled = Filled(rows, computed, rows - computed, shards, folder, seconds, cut)
    say(
        f"logit cache {name}: {filled.rows:,} distinct rows, {filled.computed:,} computed "
        f"({filled.shards} shards), {filled.reused:,} reused; took {clock(filled.seconds)}"
    )
    return filled


def together(filled: Sequence[Filled]) -> Filled:
    """Return the passes of an ensemble's teachers as one: a row counts once for each teacher."""
    if len(filled) == 1:
        return filled[0]
    return Filled(
        rows=sum(one.rows for one in filled),
        computed=sum(one.computed for one in filled),
        reused=sum(one.reused for one in filled),
        shards=sum(one.shards for one in filled),
        folder=filled[0].folder.parent,
        seconds=round(sum(one.seconds for one in filled), 3),
        cut=sum(one.cut for one in filled),
    )


@dataclass
class Window:
    """Rows to be answered next."""

    keys: list[Keys]
    texts: list[str]
    texts_b: list[str]
    """Empty where there are single texts."""


def fill_cache(
    run: RunFolder,
    prepared: Prepared,
    config: LogitsConfig,
    home: Path,
    part: Part = (1, 1),
    *,
    words: bool = False,
    splits: Sequence[str] = SPLITS,
) -> Filled:
    """Compute the answers to these splits that the cache of the teacher in `home` lacks, and only
    these; with `words` also its word vectors.

    Raises StageError where teacher and data do not belong together, CacheError where the cache
    can't take the answers.
    """
    started = time.monotonic()
    card = read_card(home)
    _check(card, prepared, home)
    precision = precision_of(config.precision)
    fingerprint = fingerprint_teacher(home, precision)
    folder = run.cache(fingerprint)
    asked = [name for name in splits if name in prepared.rows]
    wanted = distinct_keys(run, asked, part)
    is_open = np.ones(len(wanted), dtype=np.bool_)  # [distinct rows]
    manifest = read_manifest(folder)
    cache = (
        None if manifest is None else LogitCache.create(folder, _agreed(manifest, config, folder))
    )
    if cache is not None:
        is_open = cache.missing(wanted.keys())
    missing = int(is_open.sum())

    teacher: Teacher | None = None
    shards, cut = 0, 0
    if missing:
        from bert_kd.teacher.answer import Answering
        from bert_kd.teacher.model import open_teacher

        teacher = open_teacher(home)
        if cache is None:
            manifest = _new_manifest(run, home, teacher, fingerprint, config, precision, asked)
            cache = LogitCache.create(folder, manifest)
        features = cache.manifest.feature_size is not None
        answering = Answering(teacher, precision, config.tokens_per_batch, features)
        done = len(wanted) - missing
        with progress("asking the teacher", len(wanted), "rows", done=done) as advance:
            for window in windows(run, asked, wanted, is_open, config.rows_per_shard):
                answers = answering(window.texts, window.texts_b or None, advance)
                cache.append(np.concatenate(window.keys), answers.logits, answers.features)
                shards += 1
        cut = answering.cut

    if words and not has_word_vectors(folder):
        from bert_kd.teacher.model import open_teacher
        from bert_kd.teacher.words import word_vectors

        vectors = word_vectors(teacher or open_teacher(home), precision)
        write_word_vectors(folder, vectors)

    filled = finished(str(folder), folder, len(wanted), missing, shards, started, cut)
    if cut:
        say(
            f"{cut:,} texts are longer than the teacher's {card.max_length} wordpieces and were cut"
        )
    return filled


def _check(card: Card, prepared: Prepared, home: Path) -> None:
    if card.labels != prepared.labels or card.pair != prepared.pair:
        mine = ", ".join(prepared.labels) + (" (pairs)" if prepared.pair else "")
        theirs = ", ".join(card.labels) + (" (pairs)" if card.pair else "")
        raise StageError(
            f"the teacher in {home} answers {theirs}, but the data now has {mine}: "
            "run train-teacher again"
        )


def _agreed(manifest: Manifest, config: LogitsConfig, folder: Path) -> Manifest:
    """Return the manifest of the cache that is there; more features than asked for are no harm."""
    if config.features and manifest.feature_size is None:
        raise CacheError(
            f"the logit cache {folder} holds no features: remove it to have all answers computed "
            "again with features, or set logits.features = false and every loss.feature_weight = 0"
        )
    return manifest


def _new_manifest(
    run: RunFolder,
    home: Path,
    teacher: Teacher,
    fingerprint: str,
    config: LogitsConfig,
    precision: str,
    splits: list[str],
) -> Manifest:
    facts: dict[str, Any] = {
        "model": read_json(home / CARD)["base"],
        "max_length": teacher.max_length,
    }
    if precision == "bf16":
        from bert_kd.teacher.answer import measure_bf16

        sample = next(iterate_rows(run.split(splits[0]), SAMPLE))
        effect = measure_bf16(teacher, sample.texts, sample.texts_b, config.tokens_per_batch)
        say(
            f"bf16 moves the logits of {effect.rows} rows by {effect.mean:.5f} on average and "
            f"{effect.largest:.5f} at most; {effect.agreement:.2%} keep their best class"
        )
        facts["effect_of_bf16"] = asdict(effect)
    return Manifest(
        teacher=fingerprint,
        labels=teacher.labels,
        precision=precision,
        feature_size=int(teacher.model.config.hidden_size) if config.features else None,
        facts=facts,
    )


def distinct_keys(run: RunFolder, splits: Sequence[str], part: Part) -> KeyIndex:
    """Return the keys of these splits that fall to this part."""
    found = [np.zeros(0, dtype=KEY_DTYPE)]
    for split in splits:
        for rows in iterate_rows(run.split(split)):
            found.append(rows.keys[_falls_to(rows.keys, part)])
    return index_keys(np.concatenate(found))


def _falls_to(keys: Keys, part: Part) -> npt.NDArray[np.bool_]:
    """Return which of `keys` fall to this part, shape [rows]."""
    index, parts = part
    if not 1 <= index <= parts:
        raise CacheError(
            f"part {index}/{parts} of the rows: give one from 1/{parts} to {parts}/{parts}"
        )
    mine: npt.NDArray[np.bool_] = keys["low"].astype(np.uint64) % np.uint64(parts) == index - 1
    return mine


def windows(
    run: RunFolder,
    splits: Sequence[str],
    wanted: KeyIndex,
    is_open: npt.NDArray[np.bool_],
    size: int,
) -> Iterator[Window]:
    """Yield the rows whose key is open, each key once, `size` at a time, and close the keys."""
    window = Window([], [], [])
    for split in splits:
        for rows in iterate_rows(run.split(split)):
            place = wanted.find(rows.keys)  # [rows], −1: falls to another part
            for row in np.flatnonzero((place >= 0) & is_open[place]):
                if not is_open[place[row]]:  # the same text stood in a row just before
                    continue
                is_open[place[row]] = False
                window.keys.append(rows.keys[row : row + 1])
                window.texts.append(rows.texts[row])
                if rows.texts_b is not None:
                    window.texts_b.append(rows.texts_b[row])
                if len(window.texts) == size:
                    yield window
                    window = Window([], [], [])
    if window.texts:
        yield window
