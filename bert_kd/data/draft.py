"""The rows of a source, read and checked once, before it is decided where each goes.

Texts lie in a Parquet file aside; only two keys, a label code and a byte a row stay in memory. The
rows that a mask picks are read back from there, so no pass over the source is repeated and no split
is ever held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_kd.data.keys import Keys, folded_keys, join_keys, row_keys
from bert_kd.data.labels import MISSING, Codes, LabelCodes
from bert_kd.data.rows import GROUP_ROWS, Rows
from bert_kd.data.splits import Ints, Mask
from bert_kd.data.tables import BATCH_ROWS, Columns, Table
from bert_kd.progress import progress
from bert_kd.store import writing


@dataclass(frozen=True)
class Example:
    """A row to show to people."""

    place: str
    text: str
    """Cut to a readable length."""
    labels: tuple[str, ...] = ()
    """The labels that the text carries, where there are several."""


@dataclass(frozen=True)
class Draft:
    """The rows of one source split, in order."""

    path: Path
    tables: tuple[tuple[int, Table], ...]
    """Each table, with the rows before it."""
    keys: Keys  # [rows]
    folded: Keys  # [rows], equal where texts differ in case, width or white space alone
    codes: Codes  # [rows], label codes, -1: none
    empty: Mask  # [rows], no text (in neither column of a pair)

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, mask: Mask, lookup: Codes) -> Iterator[Rows]:
        """Yield the rows that `mask` picks, in order, with the labels `lookup[code]`."""
        done = 0
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                part = slice(done, done + batch.num_rows)
                done += batch.num_rows
                picked = mask[part]
                if not picked.any():
                    continue
                chosen = batch.filter(pa.array(picked))
                yield Rows(
                    keys=self.keys[part][picked],
                    texts=chosen.column("text").to_pylist(),
                    texts_b=chosen.column("text_b").to_pylist()
                    if "text_b" in chosen.schema.names
                    else None,
                    labels=lookup[self.codes[part][picked]].astype(np.int64),
                    views=np.zeros(chosen.num_rows, dtype=np.int16),
                )

    @property
    def pair(self) -> bool:
        return "text_b" in pq.read_schema(self.path).names

    def texts(self, mask: Mask) -> Iterator[str]:
        """Yield the texts of the rows that `mask` picks, in order, those of a pair one by one."""
        nothing = np.zeros(int(self.codes.max(initial=0)) + 2, dtype=np.int32)
        for rows in self.rows(mask, nothing):
            if rows.texts_b is None:
                yield from rows.texts
            else:
                yield from chain.from_iterable(zip(rows.texts, rows.texts_b, strict=True))

    def examples(self, rows: Sequence[int] | Ints) -> list[Example]:
        """Return these rows with their places; only the row groups that hold them are read."""
        found: dict[int, Example] = {}
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = [int(row) for row in rows if start <= row < end]
                if wanted:
                    table = file.read_row_group(group)
                    for row in wanted:
                        found[row] = self._example(table.slice(row - start, 1).to_pylist()[0], row)
                start = end
        return [found[int(row)] for row in rows]

    def _example(self, values: dict[str, str | int], row: int) -> Example:
        table = next(table for start, table in reversed(self.tables) if start <= row)
        texts = [str(values[name]) for name in ("text", "text_b") if name in values]
        shown = [text if len(text) <= 120 else text[:119] + "…" for text in texts]
        return Example(table.place(int(values["line"])), " ‖ ".join(shown))


def read_draft(
    tables: Sequence[Table],
    columns: Columns,
    codes: LabelCodes,
    split: str,
    path: Path,
    rewrite: Callable[[str], str] | None = None,
) -> Draft:
    """Read the tables of a split one after the other; write their texts to `path`, as
    `rewrite` gives each.

    Raises DataError.
    """
    second = [("text_b", pa.string())] if columns.text_b is not None else []
    schema = pa.schema([("text", pa.string()), *second, ("line", pa.int64())])
    keys: list[Keys] = []
    folded: list[Keys] = []
    labels: list[Codes] = [np.zeros(0, dtype=np.int32)]
    empty: list[Mask] = [np.zeros(0, dtype=bool)]
    starts: list[tuple[int, Table]] = []
    done = 0
    counts = [table.rows for table in tables]
    total = sum(count or 0 for count in counts) if None not in counts else None
    with (
        writing(path) as aside,
        pq.ParquetWriter(aside, schema, compression="lz4") as writer,
        progress(f"read {split}", total, "rows") as advance,
    ):
        for table in tables:
            starts.append((done, table))
            for given in table.read(columns):
                raw = given if rewrite is None else given.rewritten(rewrite)
                arrays = [pa.array(raw.texts, pa.string())]
                if raw.texts_b is not None:
                    arrays.append(pa.array(raw.texts_b, pa.string()))
                arrays.append(pa.array(raw.lines, pa.int64()))
                writer.write_batch(
                    pa.record_batch(arrays, schema=schema), row_group_size=GROUP_ROWS
                )
                keys.append(row_keys(raw.texts, raw.texts_b))
                folded.append(folded_keys(raw.texts, raw.texts_b))
                labels.append(
                    np.full(len(raw), MISSING, dtype=np.int32)
                    if raw.labels is None
                    else codes.encode(split, raw.labels, raw.lines, table.place)
                )
                blank = [not text or text.isspace() for text in raw.texts]
                if raw.texts_b is not None:
                    blank = [
                        both and (not text or text.isspace())
                        for both, text in zip(blank, raw.texts_b, strict=True)
                    ]
                empty.append(np.array(blank, dtype=bool))
                done += len(raw)
                advance(len(raw))
    return Draft(
        path,
        tuple(starts),
        join_keys(keys),
        join_keys(folded),
        np.concatenate(labels),
        np.concatenate(empty),
    )
