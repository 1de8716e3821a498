"""Making `data/views.parquet`: views of the rows of train and, as far as there is room, of the
transfer texts, without repeats, counted.

These texts are read twice: once to learn word classes and to pick partners, from a sample that
does not grow with the data; once to make the views, some thousand rows at a time. Each part lies in
a file of its own until all are there, so that a killed run goes on where it was. Row keys stay in
memory, 16 bytes a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_kd.config import AugmentConfig
from bert_kd.data.augment import KINDS, Neighbours, Partners, Tools, make_views
from bert_kd.data.keys import Keys, folded_keys, join_keys
from bert_kd.data.prepare import Prepared, load_prepared
from bert_kd.data.rows import Rows, iterate_rows, write_rows
from bert_kd.data.splits import contained, group
from bert_kd.data.units import is_word, split_units
from bert_kd.data.word_classes import learn_classes
from bert_kd.progress import progress, say
from bert_kd.store import SPLITS, RunFolder, fingerprint, make_folder, read_json, write_json

VIEWS = "views"
VIEWED = ("train", "transfer")
"""The splits that views are made of, the first one first."""
AUTO_VIEWS, AUTO_UNITS = 20, 4_000_000
"""Where no number is asked for: views of a row, and units (words, marks) of all views together. A
long text tells more by itself, and costs more to answer.
"""
MEASURED_ROWS = 256
"""Rows of each part whose units are counted."""
PART_ROWS = 4096
LEARNED_ROWS = 100_000
"""Rows that word classes are learned from."""
PARTNERS = 4096
"""Rows a class that parts are taken from."""
TELLING = 0.05
"""A word tells what a pair is about where at most this share of the partners hold it."""


@dataclass(frozen=True)
class Proposals:
    """What a language model knows of words, as far as it is asked."""

    neighbours: Neighbours | None = None
    mask_token: str | None = None
    """How the teacher writes a masked word; None: masked words are left out."""
    identity: str = "none"
    """Tells one source from another."""


@dataclass(frozen=True)
class _Counts:
    """Views that were written and those that were not."""

    rows: int
    kinds: dict[str, int]
    repeats: int
    known: int


def write_views(
    run: RunFolder, prepared: Prepared, config: AugmentConfig, proposals: Proposals
) -> Prepared:
    """Write the views beside the splits; return what is prepared then.

    Parts that a killed run left are kept where rows, settings and proposals are the same.
    """
    keys, labels, units = _keys_of(run)
    wanted = _wanted(keys, int((labels >= 0).sum()), units, config)
    job = fingerprint(
        prepared.fingerprints, config.model_dump(mode="json"), proposals.identity, PART_ROWS
    )
    folder = _parts_folder(run, job)
    tools = _tools(run, keys, labels, prepared.pair, config, proposals)
    paths = []
    done = 0
    due_rows = int(np.flatnonzero(wanted).max(initial=-1)) + 1
    with progress("make views", due_rows, "rows") as advance:
        for number, rows in enumerate(_iterate(run)):
            if done >= due_rows:
                break  # the transfer texts that follow have no views
            path = folder / f"part-{number:05d}.parquet"
            if not path.exists():
                due = wanted[done : done + len(rows)].tolist()
                write_rows(path, [make_views(rows, due, config, tools)])
            paths.append(path)
            done += len(rows)
            advance(min(len(rows), due_rows - done + len(rows)))
    written, counts = _merge(run, paths)
    facts = read_json(run.prepared)
    facts["rows"][VIEWS] = counts.rows
    facts["fingerprints"][VIEWS] = written
    asked = int(wanted.sum())
    facts["report"][VIEWS] = {
        "wanted": asked,
        "kinds": counts.kinds,
        "repeats": counts.repeats,
        "known": counts.known,
        "unchanged": asked - counts.rows - counts.repeats - counts.known,
        "mask_token": proposals.mask_token,
    }
    write_json(run.prepared, facts)
    shutil.rmtree(run.view_parts)
    made = load_prepared(run)
    say(describe_views(made))
    return made


def describe_views(prepared: Prepared) -> str:
    """Return what views were made, in a line."""
    counts = prepared.report[VIEWS]
    kinds = ", ".join(f"{kind} {rows:,}" for kind, rows in counts["kinds"].items() if rows)
    return (
        f"views: {prepared.rows[VIEWS]:,} rows of {counts['wanted']:,} wanted ({kinds}); dropped: "
        f"{counts['repeats']:,} repeating another view, {counts['known']:,} standing in another "
        f"split, {counts['unchanged']:,} that came out as their row"
    )


def _iterate(run: RunFolder) -> Iterator[Rows]:
    """Yield the rows that views are made of, in parts."""
    for split in VIEWED:
        if run.split(split).exists():
            yield from iterate_rows(run.split(split), PART_ROWS)


def _keys_of(run: RunFolder) -> tuple[Keys, npt.NDArray[np.int64], float]:
    """Return keys and labels of these rows, and how many units one has on average (of a sample)."""
    keys, labels, units = [], [], []
    for rows in _iterate(run):
        keys.append(rows.keys)
        labels.append(rows.labels)
        for row in range(0, len(rows), max(len(rows) // MEASURED_ROWS, 1)):
            sides = [rows.texts[row]] + ([rows.texts_b[row]] if rows.texts_b else [])
            units.append(sum(len(split_units(side).words) for side in sides))
    return join_keys(keys), np.concatenate(labels), float(np.mean(units))


def _wanted(
    keys: Keys, labelled: int, units: float, config: AugmentConfig
) -> npt.NDArray[np.int64]:
    """Return how many views to make of each row (of so many units on average): of the first
    `labelled` rows as many as the limits allow, of the others what they leave.
    """
    views, room = config.views, config.maximum
    if views == "auto":
        views, room = AUTO_VIEWS, min(room, int(AUTO_UNITS / max(units, 1.0)))
    return _share(keys, labelled, views, room)


def _share(keys: Keys, first: int, each: int, room: int) -> npt.NDArray[np.int64]:
    """Return how many of `room` go to each row: at most `each`, to the `first` rows before the
    others, evenly among these and among those, by key.
    """
    shares = np.zeros(len(keys), dtype=np.int64)
    for rows in (slice(0, first), slice(first, len(keys))):
        count = len(keys[rows])
        if count:
            total = min(each * count, room)
            shares[rows] = total // count
            shares[rows][_lowest(keys[rows], total % count)] += 1
            room -= total
    return shares


def _lowest(keys: Keys, count: int) -> npt.NDArray[np.int64]:
    """Return the `count` rows of the lowest keys (which are hashes: a sample by chance)."""
    return np.sort(np.argsort(keys["low"].astype(np.uint64), kind="stable")[:count])


def _parts_folder(run: RunFolder, job: str) -> Path:
    """Return the folder of this job's parts, with those of a killed run; others' are removed."""
    if run.view_parts.exists():
        for other in run.view_parts.iterdir():
            if other.name != job:
                shutil.rmtree(other)
    folder = run.view_parts / job
    make_folder(folder)
    return folder


def _tools(
    run: RunFolder,
    keys: Keys,
    labels: npt.NDArray[np.int64],
    pair: bool,
    config: AugmentConfig,
    proposals: Proposals,
) -> Tools:
    """Return what views are made with, learned from samples of the rows by key."""
    learned = _share(keys, int((labels >= 0).sum()), 1, LEARNED_ROWS) > 0
    partnering = np.zeros(len(keys), dtype=bool)
    classes = np.unique(labels)
    for label in classes:
        own = np.flatnonzero(labels == label)
        partnering[own[_lowest(keys[own], max(PARTNERS // len(classes), 64))]] = True
    partners: dict[int, list[tuple[str, str | None]]] = {}

    def sample() -> Iterator[str]:
        done = 0
        for rows in _iterate(run):
            part = slice(done, done + len(rows))
            done += len(rows)
            for row in np.flatnonzero(learned[part] | partnering[part]):
                text = rows.texts[row]
                text_b = None if rows.texts_b is None else rows.texts_b[row]
                if partnering[part][row]:
                    partners.setdefault(int(rows.labels[row]), []).append((text, text_b))
                if learned[part][row]:
                    yield text
                    if text_b is not None:
                        yield text_b

    word_classes = learn_classes(sample(), config.seed)
    for rows_of_class in partners.values():
        rows_of_class.sort(key=lambda row: (row[0], row[1] or ""))  # not as they stood
    holding = _holding(partners) if pair else {}
    return Tools(
        word_classes, Partners(partners, holding), proposals.neighbours, proposals.mask_token
    )


def _holding(
    partners: Mapping[int, Sequence[tuple[str, str | None]]],
) -> dict[str, list[tuple[str, str | None]]]:
    """Return the partners whose first side holds a word, for the words that tell them apart."""
    rows = [row for label in sorted(partners) for row in partners[label]]
    holding: dict[str, list[tuple[str, str | None]]] = {}
    for row in rows:
        for word in dict.fromkeys(filter(is_word, split_units(row[0]).words)):
            holding.setdefault(word, []).append(row)
    most = max(TELLING * len(rows), 2)
    return {word: found for word, found in holding.items() if 2 <= len(found) <= most}


def _merge(run: RunFolder, paths: Sequence[Path]) -> tuple[str, _Counts]:
    """Write the views of all parts that repeat neither a row of a split nor each other, case, width
    and white space aside; return the fingerprint and what was counted.
    """
    views = join_keys([_folded(rows) for path in paths for rows in iterate_rows(path)])
    given = join_keys(
        [
            _folded(rows)
            for split in SPLITS
            if split != VIEWS and run.split(split).exists()
            for rows in iterate_rows(run.split(split))
        ]
    )
    known = contained(views, given)
    fresh = np.flatnonzero(~known)
    repeats = np.zeros(len(views), dtype=bool)
    repeats[fresh] = group(views[fresh]).repeats()
    kept = ~known & ~repeats
    kinds = np.zeros(1 + sum(KINDS.values()), dtype=np.int64)  # [sums of kinds]

    def rows_to_keep() -> Iterator[Rows]:
        done = 0
        for path in paths:
            for rows in iterate_rows(path):
                picked = np.flatnonzero(kept[done : done + len(rows)])
                done += len(rows)
                kinds[:] += np.bincount(rows.views[picked], minlength=len(kinds))
                yield rows.take(picked)

    written = write_rows(run.split(VIEWS), rows_to_keep())
    sums = np.arange(len(kinds))
    by_kind = {kind: int(kinds[sums & bit > 0].sum()) for kind, bit in KINDS.items()}
    return written, _Counts(int(kept.sum()), by_kind, int(repeats.sum()), int(known.sum()))


def _folded(rows: Rows) -> Keys:
    """Return the folded keys of rows, shape [rows]."""
    return folded_keys(rows.texts, rows.texts_b)
