"""Answers in and out: a black-box teacher's file into a cache, a cache with texts into a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bert_kd import store
from bert_kd.data.keys import Keys, join_keys, row_keys
from bert_kd.data.rows import Rows, iterate_rows
from bert_kd.errors import CacheError, DataError
from bert_kd.logits.answer_files import (
    AnswerColumns,
    AnswerRows,
    column_names,
    file_format,
    read_answers,
    require_columns,
    write_text_file,
)
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.logits.combine import centred_logarithms, column_order, softmax
from bert_kd.logits.index import group_keys
from bert_kd.logits.manifest import read_manifest
from bert_kd.logits.shard import Logits
from bert_kd.progress import progress, say

IMPORT_ROWS = 8192
EXPORT_ROWS = 65_536
"""Each batch reads through the whole cache, so it is a large one."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a row may be from 1 in sum: three decimals are still fine."""
SAME = 1e-3
"""Logits of two answers to one text that differ by no more count as the same answer."""
SHOWN = 3

Kind = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    folder: Path
    rows: int
    """Rows of the file."""
    stored: int
    """Answers added to the cache."""
    repeated: int
    """Rows whose text had an answer by then, in the cache or further up in the file; not stored."""
    different: int
    """Repeated rows with another answer than the first, which is the one that is kept."""
    examples: tuple[str, ...]
    """Some texts of those."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    output: Path
    rows: int
    skipped: int
    """Rows left out, as the cache has no answer to them."""


def import_answers(
    folder: Path,
    file: Path,
    *,
    labels: Sequence[str],
    kind: Kind,
    columns: Sequence[str] | str | None = None,
    text: str = "text",
    text_b: str | None = None,
    name: str | None = None,
) -> Imported:
    """Add the answers in a CSV, JSON lines or Parquet file to the cache in `folder`, new or not.

    `columns`: the column of each label, in order, or the one that holds lists (not in CSV); None:
    a column called as `kind` where there is one, else those called as the labels. `name` tells
    this teacher from others; None: the folder's name, or that under which earlier files were
    imported. Probabilities become centred log-probabilities.

    The file is read in batches, and what was stored stays: after an interruption the same import
    goes on. Raises DataError, naming file and line or row, for what cannot be used; CacheError
    where `folder` holds other answers.
    """
    chosen = _choose_columns(file, tuple(labels), kind, columns, text, text_b)
    cache = LogitCache.create(folder, _manifest(folder, file, tuple(labels), kind, name))
    repeats = _Repeats(cache)
    rows = stored = 0
    with progress(f"importing {file.name}", None, "rows") as advance:
        for batch in read_answers(file, chosen, IMPORT_ROWS):
            logits = _to_logits(file, batch, kind)
            keys = row_keys(batch.texts, batch.texts_b)
            fresh = np.zeros(len(keys), dtype=np.bool_)
            _, first, _ = group_keys(keys)
            fresh[first[cache.missing(keys[first])]] = True
            if fresh.any():
                cache.append(keys[fresh], logits[fresh])
            repeats.add(keys, logits, batch.texts, ~fresh)
            rows += len(keys)
            stored += int(fresh.sum())
            advance(len(keys))
        repeats.compare()
    if rows == 0:
        raise DataError(f"{file} holds no rows")
    if repeats.different:
        say(
            f"{repeats.different:,} rows of {file} repeat a text with another answer; the first "
            f"one is kept. For example: {'; '.join(repr(text) for text in repeats.examples)}"
        )
    return Imported(folder, rows, stored, rows - stored, repeats.different, tuple(repeats.examples))


def _choose_columns(
    file: Path,
    labels: tuple[str, ...],
    kind: Kind,
    columns: Sequence[str] | str | None,
    text: str,
    text_b: str | None,
) -> AnswerColumns:
    """Return where the answers stand. Raises DataError where they don't."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise DataError(f"labels {list(labels)}: two or more different names are needed")
    found = column_names(file)
    lists = file_format(file) != "csv"
    if isinstance(columns, str):
        if not lists:
            raise DataError(f"{file}: a CSV column holds no list; name a column for each label")
        chosen = AnswerColumns(text, text_b, labels, columns)
    elif columns is not None:
        if len(columns) != len(labels):
            raise DataError(f"{len(columns)} columns are named for {len(labels)} labels")
        chosen = AnswerColumns(text, text_b, tuple(columns), None)
    elif lists and kind in found and kind not in labels:
        chosen = AnswerColumns(text, text_b, labels, kind)
    else:
        chosen = AnswerColumns(text, text_b, labels, None)
    require_columns(str(file), found, chosen.all)
    return chosen


def _manifest(
    folder: Path, file: Path, labels: tuple[str, ...], kind: Kind, name: str | None
) -> Manifest:
    """Return the manifest of an import into `folder`. CacheError if it holds a model's cache."""
    there = read_manifest(folder)
    if there is not None and "imported_from" not in there.facts:
        raise CacheError(f"{folder} holds the answers of a model: import into a folder of its own")
    teacher = store.fingerprint("imported", name or folder.resolve().name)
    if there is not None and name is None:
        teacher = there.teacher
    facts = {"imported_from": str(file), "name": name or folder.resolve().name}
    return Manifest(teacher, labels, kind, facts=facts)


def _to_logits(file: Path, batch: AnswerRows, kind: Kind) -> Logits:
    """Return the logits of a batch, [rows, classes]. DataError if its values are none of `kind`."""
    values = batch.values
    unit = "row" if file_format(file) == "parquet" else "line"
    if kind == "logits":
        with np.errstate(over="ignore"):
            logits = values.astype(np.float32)
        wrong = ~np.isfinite(logits).all(axis=1)
        reason = "too large for float32"
    else:
        wrong = ((values < 0) | (values > 1)).any(axis=1)
        reason = "not all between 0 and 1; if these are logits, import them as such"
        if not wrong.any():
            wrong = np.abs(values.sum(axis=1) - 1) > SUM_TOLERANCE
            reason = "not 1 in sum: one probability for each class is needed"
        logits = np.empty(0, dtype=np.float32) if wrong.any() else centred_logarithms(values)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        numbers = ", ".join(f"{value:g}" for value in values[at])
        raise DataError(f"{file}, {unit} {batch.places[at]}: the {kind} {numbers} are {reason}")
    return logits


@dataclass
class _Repeats:
    """Rows whose text has an answer already, compared with it many at a time."""

    cache: LogitCache
    different: int = 0
    examples: list[str] = field(default_factory=list)
    _held: list[tuple[Keys, Logits, list[str]]] = field(default_factory=list)

    def add(
        self, keys: Keys, logits: Logits, texts: list[str], rows: npt.NDArray[np.bool_]
    ) -> None:
        picked = np.flatnonzero(rows)
        if len(picked):
            self._held.append((keys[picked], logits[picked], [texts[row] for row in picked]))
        if sum(len(held) for held, _, _ in self._held) >= EXPORT_ROWS:
            self.compare()

    def compare(self) -> None:
        if not self._held:
            return
        keys = join_keys([held for held, _, _ in self._held])
        logits = np.concatenate([held for _, held, _ in self._held])
        texts = [text for _, _, held in self._held for text in held]
        self._held.clear()
        distance = np.abs(self.cache.lookup(keys, features=False).logits - logits).max(axis=1)
        differing = np.flatnonzero(distance > SAME)
        self.different += len(differing)
        for row in differing[: SHOWN - len(self.examples)]:
            self.examples.append(texts[row])


def export_answers(
    folder: Path,
    split: Path,
    output: Path,
    *,
    labels: Sequence[str],
    values: Kind = "logits",
    missing: Literal["refuse", "skip"] = "refuse",
) -> Exported:
    """Write a prepared split with the cache's answers, in order, as CSV, JSON lines or Parquet.

    Columns: `text`, `text_b` (pairs), `label` (the name; empty where there is none) and one for
    each of `labels`, the data's label names. `import_answers` reads such a file. Memory is
    constant but for the index of the cache's keys (16 bytes each). Raises CacheError where rows
    have no answer, unless they are to be skipped.
    """
    cache = LogitCache.open(folder)
    order = column_order(cache.manifest.labels, labels, f"the logit cache {folder}")
    file_format(output)
    clash = {"text", "text_b", "label"} & set(labels)
    if clash:
        raise DataError(f"a label is called '{min(clash)}', as another column of the file is")
    total, lacking = _count(cache, split)
    if lacking == total or (lacking and missing == "refuse"):
        raise CacheError(
            f"{lacking:,} of {total:,} rows of {split} have no answer in the logit cache {folder}: "
            f"{cache.manifest.remedy}, or leave them out of the export"
        )
    written = 0
    with (
        store.writing(output) as aside,
        _open_table(aside, output, labels) as write,
        progress(f"exporting {split.stem}", total - lacking, "rows") as advance,
    ):
        for batch in iterate_rows(split, EXPORT_ROWS):
            rows = _pick(batch, ~cache.missing(batch.keys)) if lacking else batch
            if len(rows) == 0:
                continue
            logits = cache.lookup(rows.keys, features=False).logits[:, order]
            if values == "probabilities":
                logits = softmax(logits).astype(np.float32)
            write(rows, logits)
            written += len(rows)
            advance(len(rows))
    return Exported(output, written, total - written)


def _count(cache: LogitCache, split: Path) -> tuple[int, int]:
    """Return the rows of a split, and how many have no answer."""
    total = lacking = 0
    for rows in iterate_rows(split, EXPORT_ROWS):
        total += len(rows)
        lacking += int(cache.missing(rows.keys).sum())
    return total, lacking


def _pick(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    picked = np.flatnonzero(mask)
    return Rows(
        rows.keys[picked],
        [rows.texts[row] for row in picked],
        None if rows.texts_b is None else [rows.texts_b[row] for row in picked],
        rows.labels[picked],
        rows.views[picked],
    )


Write = Callable[[Rows, npt.NDArray[np.float32]], None]


@contextmanager
def _open_table(aside: Path, output: Path, labels: Sequence[str]) -> Iterator[Write]:
    """Yield `write(rows, values [rows, classes])`, which adds to `aside` in `output`'s format."""
    if file_format(output) == "parquet":
        with _ParquetOut(aside, labels) as parquet:
            yield parquet.write
        return
    with write_text_file(aside, output.suffix == ".gz") as file:
        lines = csv.writer(file, lineterminator="\n")
        fresh = True

        def write_csv(rows: Rows, values: npt.NDArray[np.float32]) -> None:
            nonlocal fresh
            table = _columns(rows, values.astype(str), labels)
            if fresh:
                lines.writerow(table)
            fresh = False
            lines.writerows(zip(*table.values(), strict=True))

        def write_jsonl(rows: Rows, values: npt.NDArray[np.float32]) -> None:
            # By way of the shortest text that is this float32: 0.1, not 0.10000000149011612.
            table = _columns(rows, values.astype(str).astype(np.float64), labels)
            for row in zip(*table.values(), strict=True):
                record = dict(zip(table, row, strict=True))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

        yield write_csv if file_format(output) == "csv" else write_jsonl


def _columns(rows: Rows, values: npt.NDArray[Any], labels: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of the file, by name."""
    second = {} if rows.texts_b is None else {"text_b": rows.texts_b}
    names = [labels[label] if label >= 0 else None for label in rows.labels]
    answers = {label: values[:, at].tolist() for at, label in enumerate(labels)}
    return {"text": rows.texts, **second, "label": names, **answers}


class _ParquetOut:
    """A Parquet file whose schema is known with its first rows (single texts or pairs)."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path, self.labels = path, labels
        self.writer: Any = None

    def __enter__(self) -> _ParquetOut:
        return self

    def write(self, rows: Rows, values: npt.NDArray[np.float32]) -> None:
        table = _columns(rows, values, self.labels)
        kinds = [(name, pa.float32() if name in self.labels else pa.string()) for name in table]
        schema = pa.schema(kinds)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, schema, write_page_checksum=True)
        self.writer.write_table(pa.Table.from_pydict(table, schema=schema))

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
