"""Stage 01: from labelled text, wherever it lies, to checked splits in Parquet.

The source is read once into a draft aside (keys and labels in memory, texts on disk); then it is
decided where each row goes; then the splits are written. Nothing of an earlier run is replaced
before the whole source was read and checked.

Decisions about rows: empty texts are dropped from train and transfer and kept in validation and
test, so that scores stay comparable; a test split without any label (as GLUE gives it) counts as
not given; the options that drop rows never change which rows a cut gives to validation and test;
transfer texts that also stand in another split are always dropped. Between splits, and of texts
without labels, those count as one that differ in case, width or white space alone; that two rows of
a labelled split repeat each other is told of the very same text.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_kd.config import DataConfig
from bert_kd.data import findings as find
from bert_kd.data.diversity import diversity
from bert_kd.data.draft import Draft, read_draft
from bert_kd.data.findings import Finding, Lengths
from bert_kd.data.labels import LabelCodes, Labels
from bert_kd.data.rows import write_rows
from bert_kd.data.sources import Source, find_source
from bert_kd.data.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Mask,
    contained,
    cut,
    group,
    largest_class,
)
from bert_kd.data.style import Rewriting, Style, learn_style
from bert_kd.data.tables import Columns
from bert_kd.errors import DataError, StageError
from bert_kd.progress import progress, say
from bert_kd.store import SPLITS, RunFolder, Stamp, make_folder, read_json, write_json


@dataclass(frozen=True)
class Prepared:
    """What stage 01 made: `data/prepared.json` and `data/labels.json`."""

    labels: tuple[str, ...]
    pair: bool
    rows: dict[str, int]
    """Rows of each split that was written."""
    fingerprints: dict[str, str]
    """Of each split, over the (key, label) of its rows in order."""
    report: dict[str, Any]
    """What was read, counted and dropped, with examples."""


@dataclass(frozen=True)
class Piece:
    """The rows of a split to be written."""

    draft: Draft
    mask: Mask  # [rows of the draft]

    @property
    def rows(self) -> int:
        return int(self.mask.sum())


def prepare(config: DataConfig, run: RunFolder) -> Prepared:
    """Read the source, check it, and write the splits, the labels and the report.

    Raises DataError.
    """
    source = find_source(config)
    with _aside(run) as folder:
        codes = LabelCodes(config.label)
        drafts, notes = _read(source, config, codes, folder)
        labels = codes.resolve(source.names)
        notes += _check_splits(source, drafts, codes, labels)
        pieces, found = _route(config, drafts, labels)
        _check_classes(pieces["train"], labels, source)
        notes += _cut_notes(config, drafts, pieces) + _thin_classes(pieces, labels)
        notes += _blank_classes(labels)
        notes += _budget_notes(config, pieces)
        report = {
            "source": source.name,
            "tables": {
                split: [table.name for _, table in draft.tables] for split, draft in drafts.items()
            },
            "read": {split: len(draft) for split, draft in drafts.items()},
            "notes": notes,
            "findings": [asdict(finding) for finding in found],
        }
        prepared = _write(run, config, pieces, labels, report)
    for line in describe(prepared):
        say(line)
    return prepared


def load_prepared(run: RunFolder) -> Prepared:
    """Return what stage 01 made. Raises StageError where it has not run."""
    for path in (run.prepared, run.labels):
        if not path.exists():
            raise StageError(f"{path} is missing: run prepare-data first")
    facts = read_json(run.prepared)
    names = read_json(run.labels)
    return Prepared(
        labels=tuple(names[str(number)] for number in range(len(names))),
        pair=facts["pair"],
        rows=facts["rows"],
        fingerprints=facts["fingerprints"],
        report=facts["report"],
    )


def describe(prepared: Prepared) -> list[str]:
    """Return what was prepared and found, in a few plain lines."""
    report = prepared.report
    sizes = ", ".join(f"{split} {rows:,}" for split, rows in prepared.rows.items())
    counts = report["label_counts"]["train"]
    shares = [f"{name} {count / prepared.rows['train']:.1%}" for name, count in counts.items()]
    shown = ", ".join(shares[:12]) + (", …" if len(shares) > 12 else "")
    return [
        f"{report['source']}: {sizes} rows",
        f"{len(shares)} classes in train: {shown}",
        *report["notes"],
        *(finding["sentence"] for finding in report["findings"]),
    ]


@contextmanager
def _aside(run: RunFolder) -> Iterator[Path]:
    """Yield a folder for the drafts, removed afterwards (and one left by a killed run before)."""
    folder = run.data / ".reading"
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(
    source: Source, config: DataConfig, codes: LabelCodes, folder: Path
) -> tuple[dict[str, Draft], list[str]]:
    """Return a draft of every split of the source, and how transfer texts were rewritten."""
    drafts, notes = {}, []
    for split, tables in source.splits.items():
        columns = Columns(config.text, config.text_b, config.label, label_optional=split == "test")
        drafts[split] = read_draft(tables, columns, codes, split, folder / f"{split}.parquet")
    if source.transfer:
        columns = Columns(config.text, config.text_b)
        train = drafts["train"]
        as_labelled = config.transfer_style == "labelled"
        style = learn_style(train.texts(~train.empty)) if as_labelled else Style()
        rewriting = Rewriting(style)
        drafts["transfer"] = read_draft(
            source.transfer, columns, codes, "transfer", folder / "transfer.parquet", rewriting
        )
        notes += rewriting.notes()
    for split, draft in drafts.items():
        name = draft.tables[0][1].name
        if not len(draft):
            raise DataError(f"{name}: there are no rows: fill it, or leave it out")
        if split == "train" and draft.empty.all():
            raise DataError(
                f"{name}: there are no rows with text: is '{config.text}' the right column "
                "(data.text)?"
            )
    return drafts, notes


def _check_splits(
    source: Source, drafts: dict[str, Draft], codes: LabelCodes, labels: Labels
) -> list[str]:
    """Check every label; take a test split without labels out of `drafts`, with a note."""
    notes = []
    for split in source.splits:
        if not codes.check(split, labels):
            name = drafts.pop(split).tables[0][1].name
            notes.append(
                f"{split}: {name} holds no labels and is left aside; a {split} split is cut from "
                "train instead"
            )
    return notes


def _route(
    config: DataConfig, drafts: dict[str, Draft], labels: Labels
) -> tuple[dict[str, Piece], list[Finding]]:
    """Return the rows of every split to be written, and what was found on the way."""
    found: list[Finding] = []
    pieces = _cut_splits(config, drafts, labels)
    train = drafts["train"]
    everything = np.ones(len(train), dtype=bool)
    found += find.find_empty("train", train, everything, drop=True)

    leaving = np.zeros(len(train), dtype=bool)  # leaked rows of train
    for split in ("validation", "test"):
        draft = pieces[split].draft
        if draft is train:
            continue
        found += find.find_empty(split, draft, pieces[split].mask, drop=False)
        leaks = contained(draft.folded, train.folded[pieces["train"].mask])
        back = pieces["train"].mask & contained(train.folded, draft.folded)
        leaving |= back & config.drop_leaks
        dropped = int(back.sum()) if config.drop_leaks else 0
        other = _torn(draft, train, leaks, back, labels)
        found += find.find_leaks(split, draft, leaks, other, dropped)
    pieces["train"] = Piece(train, pieces["train"].mask & ~leaving)

    for split in ("train", "validation", "test"):
        piece = pieces[split]
        rows = np.flatnonzero(piece.mask)
        groups = group(piece.draft.keys[rows])
        repeats = np.zeros(len(piece.draft), dtype=bool)
        repeats[rows] = groups.repeats()
        drop = split == "train" and config.drop_duplicates
        found += find.find_duplicates(split, piece.draft, repeats, drop)
        found += find.find_two_labels(split, piece.draft, rows, groups, labels)
        if drop:
            pieces[split] = Piece(piece.draft, piece.mask & ~repeats)

    if "transfer" in drafts:
        pieces["transfer"] = _transfer(drafts["transfer"], pieces, found)
        if config.transfer_rows is not None:
            pieces["transfer"] = _within_budget(config, pieces, config.transfer_rows)
    return pieces, found


def _torn(draft: Draft, train: Draft, leaks: Mask, back: Mask, labels: Labels) -> int:
    """Return how many leaked rows of `draft` have a label that their text never has in train."""
    own = labels.lookup[draft.codes[leaks]]
    groups = group(np.concatenate([draft.folded[leaks], train.folded[back]]))
    # One number a (text, label): every label here is a class, 0 or above.
    texts = groups.spread(np.arange(len(groups)))
    numbers = np.concatenate([own, labels.lookup[train.codes[back]]])
    both = texts * len(labels.names) + numbers
    return int(np.isin(both[: len(own)], both[len(own) :], invert=True).sum())


def _cut_splits(config: DataConfig, drafts: dict[str, Draft], labels: Labels) -> dict[str, Piece]:
    """Return train, validation and test: given ones whole, missing ones cut from train."""
    train = drafts["train"]
    destination = np.full(len(train), -1, dtype=np.int8)
    filled = slice(None) if not train.empty.any() else ~train.empty
    destination[filled] = cut(
        train.keys[filled],
        train.folded[filled],
        labels.lookup[train.codes[filled]],
        None if "validation" in drafts else config.validation_fraction,
        None if "test" in drafts else config.test_fraction,
    )
    pieces = {}
    for split, number in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        if split != "train" and split in drafts:
            pieces[split] = Piece(drafts[split], np.ones(len(drafts[split]), dtype=bool))
            continue
        pieces[split] = Piece(train, destination == number)
        if not pieces[split].rows:
            numbers = labels.lookup[train.codes[filled]]
            most = largest_class(train.folded[filled], numbers)
            raise DataError(
                f"{train.tables[0][1].name}: too few texts to cut a {split} split from: the "
                f"largest of {len(np.unique(numbers)):,} classes has {most:,} different "
                f"({len(train):,} rows in all): give more rows of each class, or a {split} split "
                "of its own; is data.label the right column?"
            )
    return pieces


def _transfer(draft: Draft, pieces: Mapping[str, Piece], found: list[Finding]) -> Piece:
    """Return the transfer texts that stand in no other split; add what was found to `found`."""
    everything = np.ones(len(draft), dtype=bool)
    found += find.find_empty("transfer", draft, everything, drop=True)
    others = np.concatenate([piece.draft.folded[piece.mask] for piece in pieces.values()])
    overlap = contained(draft.folded, others) & ~draft.empty
    found += find.find_overlap(draft, overlap)
    mask = ~draft.empty & ~overlap
    rows = np.flatnonzero(mask)
    repeats = np.zeros(len(draft), dtype=bool)
    repeats[rows] = group(draft.folded[rows]).repeats()
    found += find.find_duplicates("transfer", draft, repeats, drop=False)
    if not len(rows):
        raise DataError(
            f"{draft.tables[0][1].name}: no transfer text is left that stands in no other split: "
            "give others, or leave data.transfer out"
        )
    return Piece(draft, mask)


def _within_budget(config: DataConfig, pieces: Mapping[str, Piece], most: int) -> Piece:
    """Return the transfer texts that are kept where there may be at most `most`."""
    train, transfer = pieces["train"], pieces["transfer"]
    rows = np.flatnonzero(transfer.mask)
    if len(rows) <= most:
        return transfer
    order = transfer.draft.keys["low"][rows].astype(np.uint64)
    if config.transfer_choice == "diverse":
        scores = diversity(train.draft.texts(train.mask), transfer.draft.texts(transfer.mask))
        if transfer.draft.pair:
            scores = scores.reshape(-1, 2).mean(axis=1)
        chosen = rows[np.lexsort((order, -scores))[:most]]
    else:
        chosen = rows[np.argsort(order, kind="stable")[:most]]
    mask = np.zeros(len(transfer.mask), dtype=bool)
    mask[chosen] = True
    return Piece(transfer.draft, mask)


def _label_counts(piece: Piece, labels: Labels) -> dict[str, int]:
    """Return the rows of each class, in label order."""
    numbers = labels.lookup[piece.draft.codes[piece.mask]]
    counts = np.bincount(numbers[numbers >= 0], minlength=len(labels.names))
    return dict(zip(labels.names, counts.tolist(), strict=True))


def _check_classes(train: Piece, labels: Labels, source: Source) -> None:
    """Raise DataError where train holds a single class."""
    held = [name for name, rows in _label_counts(train, labels).items() if rows]
    if len(held) < 2:
        raise DataError(
            f"{source.splits['train'][0].name}: train holds a single class ({', '.join(held)}): a "
            "classifier needs rows of two or more; is data.label the right column?"
        )


def _cut_notes(
    config: DataConfig, drafts: Mapping[str, Draft], pieces: Mapping[str, Piece]
) -> list[str]:
    """Return which splits were cut from train, in words."""
    notes = []
    whole = int((~drafts["train"].empty).sum())
    asked = {"validation": config.validation_fraction, "test": config.test_fraction}
    for split, fraction in asked.items():
        if split in drafts:
            continue
        share, wanted = f"{pieces[split].rows / whole:.0%}", f"{fraction:.0%}"
        how = f"{wanted} of each class by hashed key"
        if share != wanted:
            how = (
                f"{share} by hashed key: whole texts, and at least one of each class that has "
                f"enough ({wanted} of each was asked)"
            )
        notes.append(f"{split}: cut from train, {how}")
    return notes


def _budget_notes(config: DataConfig, pieces: Mapping[str, Piece]) -> list[str]:
    """Return how many transfer texts were chosen, in words, where there was a choice."""
    if config.transfer_rows is None or "transfer" not in pieces:
        return []
    piece = pieces["transfer"]
    if piece.rows < config.transfer_rows:
        return []
    return [
        f"transfer: {piece.rows:,} of {len(piece.draft):,} rows kept ({config.transfer_choice}), "
        "as data.transfer_rows has it"
    ]


def _thin_classes(pieces: Mapping[str, Piece], labels: Labels) -> list[str]:
    """Return which classes have no rows in a split, in words."""
    notes = []
    for split in ("train", "validation", "test"):
        none = [name for name, rows in _label_counts(pieces[split], labels).items() if not rows]
        if none:
            notes.append(f"{split}: no rows of {len(none)} classes: {', '.join(none[:10])}")
    return notes


def _blank_classes(labels: Labels) -> list[str]:
    """Return which classes are called as a missing label is often written, in words."""
    return [
        f"train: the class '{name}' is called as a missing label is written: remove its rows where "
        "it is one; if it is a class, list all in data.label_names"
        for name in labels.blank()
    ]


def _write(
    run: RunFolder,
    config: DataConfig,
    pieces: Mapping[str, Piece],
    labels: Labels,
    report: dict[str, Any],
) -> Prepared:
    """Write the splits and, last, what says that they are whole; the stage's stamp, which says that
    views are there too, is the caller's.
    """
    Stamp.remove(run.data)
    run.prepared.unlink(missing_ok=True)
    for split in SPLITS:
        if split not in pieces:
            run.split(split).unlink(missing_ok=True)
    fingerprints = {}
    lengths = {}
    for split, piece in pieces.items():
        counter = Lengths()
        with progress(f"write {split}", piece.rows, "rows") as advance:
            batches = counter.counted(piece.draft.rows(piece.mask, labels.lookup), advance)
            fingerprints[split] = write_rows(run.split(split), batches)
        lengths[split] = counter.summary()
    facts = {
        "pair": config.text_b is not None,
        "rows": {split: piece.rows for split, piece in pieces.items()},
        "fingerprints": fingerprints,
        "report": report
        | {
            "label_counts": {
                split: _label_counts(piece, labels)
                for split, piece in pieces.items()
                if split != "transfer"
            },
            "lengths": lengths,
        },
    }
    write_json(run.labels, {str(number): name for number, name in enumerate(labels.names)})
    write_json(run.prepared, facts)
    return load_prepared(run)
