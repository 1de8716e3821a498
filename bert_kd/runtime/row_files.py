"""Files of whole rows, read and written in parts: CSV, TSV, JSON lines (plain or gzipped), Parquet.

The format goes by the file's ending, and may differ between what is read and what is written. A
part of a Parquet file stays an Arrow table, so that types live on from Parquet to Parquet; a part
of a text file is a list of rows. Not here: picking and checking the texts (`bert_kd.data.tables`)
and answering them (`bulk.py`).
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bert_kd.data.tables import reading
from bert_kd.data.text_files import (
    csv_records,
    even_records,
    json_object,
    open_text,
    tsv_records,
)
from bert_kd.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
DIGITS = 6
"""Digits after the point of a score in a text file."""
READ_BYTES = 1 << 20
"""Of a Parquet column that are read at a time: a large row group is never read whole."""
GROUP_ROWS, GROUP_BYTES = 131_072, 64 << 20
"""A Parquet row group is written when it holds so many rows or bytes."""

Row = dict[str, Any]
Column = Sequence[str] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Some rows of a file, one after the other."""

    names: list[str]
    """Of the file's columns, in order; of JSON lines, every key that occurs in this part."""
    rows: pa.Table | list[Row]
    lines: list[int]
    """Number of each row's line (text files) or row (Parquet), from 1."""
    added: Mapping[str, Column] = field(default_factory=dict)
    """Columns to the right of the file's own."""

    def values(self, name: str) -> list[Any]:
        """Return the values of one of the file's columns."""
        if isinstance(self.rows, list):
            return [row.get(name) for row in self.rows]
        return list(self.rows.column(name).to_pylist())

    def with_columns(self, columns: Mapping[str, Column]) -> Part:
        """Return this part with `columns` to the right of the file's own."""
        return replace(self, added=columns)


Write = Callable[[Part], None]


def ending(path: Path) -> str:
    """Return a file's ending without `.gz`. Raises DataError where it names no known format."""
    name = path.name.lower()
    found = Path(name.removesuffix(".gz")).suffix
    if found not in ENDINGS:
        raise DataError(
            f"{path}: the ending '{found}' names no known format: use {', '.join(ENDINGS)}, the "
            "text ones with .gz too"
        )
    if found == ".parquet" and name.endswith(".gz"):
        raise DataError(f"{path}: Parquet files are packed inside already: leave .gz out")
    return found


def require_file(path: Path) -> None:
    """Raise DataError where `path` is not a file of a known format that can be opened."""
    with reading(path):
        if path.is_dir():
            raise DataError(f"{path} is a folder: give a file in it")
        ending(path)
        if not path.is_file():
            raise DataError(f"{path}: there is no such file")
        path.open("rb").close()


def read_parts(path: Path, rows: int) -> Iterator[Part]:
    """Yield a file's rows in parts of `rows`, at least one part, which may be empty.

    Raises DataError, naming the line, where the file is missing, damaged or ragged.
    """
    require_file(path)
    kind = ending(path)
    if kind == ".parquet":
        yield from _read_parquet(path, rows)
    elif kind == ".jsonl":
        yield from _read_jsonl(path, rows)
    else:
        yield from _read_delimited(path, rows, "\t" if kind == ".tsv" else ",")


def _read_parquet(path: Path, rows: int) -> Iterator[Part]:
    done = 0
    try:
        with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
            names = list(file.schema_arrow.names)
            _refuse_repeated(names, path)
            for batch in file.iter_batches(batch_size=rows):
                lines = list(range(done + 1, done + batch.num_rows + 1))
                yield Part(names, pa.Table.from_batches([batch]), lines)
                done += batch.num_rows
            if not done:
                yield Part(names, file.schema_arrow.empty_table(), [])
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({error}): write it again") from None


def _read_jsonl(path: Path, rows: int) -> Iterator[Part]:
    with open_text(path, newline="\n") as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if not line.isspace())
        some = list(islice(numbered, rows))
        if not some:
            yield Part([], [], [])
        while some:
            objects = [json_object(path, number, line, []) for number, line in some]
            names = list(dict.fromkeys(key for row in objects for key in row))
            yield Part(names, objects, [number for number, _ in some])
            some = list(islice(numbered, rows))


def _refuse_repeated(names: Sequence[str], path: Path) -> None:
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the column '{twice}' is there twice: rename one of them")


def _read_delimited(path: Path, rows: int, delimiter: str) -> Iterator[Part]:
    with open_text(path, newline="\n" if delimiter == "\t" else "") as file:
        records = tsv_records(file) if delimiter == "\t" else csv_records(path, file, delimiter)
        header = next((fields for _, fields in records if fields not in ([], [""])), None)
        if header is None:
            raise DataError(f"{path} is empty: it needs a header line with the columns' names")
        names = [name.strip() for name in header]
        _refuse_repeated(names, path)
        even = even_records(path, records, tuple(names), delimiter)
        some = list(islice(even, rows))
        if not some:
            yield Part(names, [], [])
        while some:
            objects = [dict(zip(names, fields, strict=True)) for _, fields in some]
            yield Part(names, objects, [line for line, _ in some])
            some = list(islice(even, rows))


@contextmanager
def writing_parts(path: Path, target: Path) -> Iterator[Write]:
    """Yield `write(part)`, which appends rows to `path` in the format of `target`.

    The first part settles the columns. Raises DataError where a later part or the format can't
    follow.
    """
    kind = ending(target)
    if kind == ".parquet":
        with _parquet_writer(path) as write:
            yield write
        return
    with path.open("wb") as raw:
        binary: Any = raw
        if target.suffix.lower() == ".gz":
            # Without name and time in it, equal rows give equal files.
            binary = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="")
        with io.TextIOWrapper(binary, encoding="utf-8", newline="") as text:
            if kind == ".jsonl":
                yield lambda part: _write_jsonl(text, part)
            else:
                yield _delimited_writer(text, "\t" if kind == ".tsv" else ",")


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Write]:
    writers: list[Any] = []
    group: list[Any] = []

    def write(part: Part) -> None:
        table = _table(part, writers[0].schema if writers else None)
        if not writers:
            _refuse_unreadable(table.schema)
            writers.append(pq.ParquetWriter(path, table.schema, compression="zstd"))
        group.append(table)
        rows, size = sum(map(len, group)), sum(table.nbytes for table in group)
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            flush()

    def flush() -> None:
        table = pa.concat_tables(group)
        group.clear()
        if len(table):
            writers[0].write_table(table, row_group_size=GROUP_ROWS)

    try:
        yield write
        if group:
            flush()
    finally:
        for writer in writers:
            writer.close()


def _refuse_unreadable(schema: Any) -> None:
    """Raise DataError for columns that Parquet has not, or that could not be read again."""
    trial = io.BytesIO()
    try:
        pq.write_metadata(schema, trial)
        trial.seek(0)
        pq.read_schema(trial)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the columns do not fit into Parquet ({error}): write to a .jsonl file"
        ) from None


def _table(part: Part, schema: Any) -> Any:
    """Return a part as an Arrow table, of `schema` where it is settled."""
    table = _typed(part, schema) if isinstance(part.rows, list) else part.rows
    for name, column in part.added.items():
        table = table.append_column(name, _array(column))
    return table


def _typed(part: Part, schema: Any) -> Any:
    """Return rows of a text file as an Arrow table."""
    names = part.names
    if schema is None:
        _refuse_half_characters(names)
    else:
        names = [name for name in schema.names if name not in part.added]
    _refuse_new(part, names)
    columns = {}
    for name in names:
        values = part.values(name)
        try:
            # Without a row to tell, a column is text.
            kind = schema.field(name).type if schema is not None else None
            columns[name] = pa.array(values, kind if values else kind or pa.string())
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise DataError(
                f"lines {part.lines[0]} to {part.lines[-1]}: the column '{name}' does not fit into "
                f"one Parquet type ({error}): write to a .jsonl file"
            ) from None
    return pa.table(columns)


def _write_jsonl(file: TextIO, part: Part) -> None:
    for line, row in zip(part.lines, _rows(part), strict=True):
        try:
            text = json.dumps(
                _without_nan(row), ensure_ascii=False, allow_nan=False, default=_json_value
            )
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"row {line} cannot be written as JSON ({error}): mend it") from None
        file.write(text + "\n")


def _delimited_writer(file: TextIO, delimiter: str) -> Write:
    names: list[str] = []
    quoted = csv.writer(file, lineterminator="\n")

    def record(where: str, cells: list[str]) -> None:
        if delimiter == ",":
            quoted.writerow(cells)
            return
        for cell in cells:
            if "\t" in cell or "\n" in cell or "\r" in cell:
                raise DataError(
                    f"{where}: the value {cell[:40]!r} holds a tab or a line break, which TSV "
                    "cannot: write to a .csv or .jsonl file"
                )
        file.write("\t".join(cells) + "\n")

    def write(part: Part) -> None:
        if not names:
            names.extend(part.names)
            _refuse_half_characters(names)
            record("header", [*names, *part.added])
        _refuse_new(part, names)
        for line, row in zip(part.lines, _rows(part), strict=True):
            try:
                cells = [_cell(row.get(name)) for name in (*names, *part.added)]
                record(f"row {line}", cells)
            except (TypeError, ValueError, RecursionError) as error:
                raise DataError(
                    f"row {line} cannot be written as text ({error}): mend it"
                ) from None

    return write


def _refuse_new(part: Part, names: Sequence[str]) -> None:
    """Raise DataError where a part of JSON lines has a key that the file's columns do not."""
    new = [name for name in part.names if name not in names]
    if new:
        raise DataError(
            f"lines {part.lines[0]} to {part.lines[-1]} have the key '{new[0]}', which the lines "
            "before them do not: write to a .jsonl file, where rows may differ"
        )


def _refuse_half_characters(names: Sequence[str]) -> None:
    """Raise DataError for a key of JSON lines that no other format can hold."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"the key {name!r} holds half of a character: rename it") from None


def _rows(part: Part) -> list[Row]:
    """Return a part's rows as Python's values, with those of the added columns."""
    rows = part.rows if isinstance(part.rows, list) else _python_rows(part.rows, part.lines)
    if not part.added:
        return rows
    values = zip(*(_plain(column) for column in part.added.values()), strict=True)
    return [
        row | dict(zip(part.added, more, strict=True))
        for row, more in zip(rows, values, strict=True)
    ]


def _python_rows(table: Any, lines: Sequence[int]) -> list[Row]:
    """Return a table's rows as Python's values. Raises DataError where Python has none for one."""
    try:
        rows: list[Row] = table.to_pylist()
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"rows {lines[0]:,} to {lines[-1]:,} hold a value that text cannot show "
            f"({error}): write to a .parquet file, or leave the column out"
        ) from None
    return rows


def _array(column: Column) -> Any:
    return pa.array(column, pa.float32() if isinstance(column, np.ndarray) else pa.string())


def _plain(column: Column) -> list[Any]:
    """Return a column as Python's texts and floats, as a text file holds them."""
    if isinstance(column, np.ndarray):
        return list(column.astype(np.float64).round(DIGITS).tolist())
    return list(column)


def _cell(value: Any) -> str:
    """Return a value as the text of a CSV or TSV cell; nothing is an empty cell."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(
            _without_nan(value), ensure_ascii=False, allow_nan=False, default=_json_value
        )
    if isinstance(value, int | float):
        return str(value)
    return _json_value(value)


def _without_nan(value: Any) -> Any:
    """Return a value with null for NaN and infinities, which JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _json_value(value: Any) -> str:
    """Return what JSON has for a value of a Parquet file that it has no type for."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"there is no JSON for {type(value).__name__}")
