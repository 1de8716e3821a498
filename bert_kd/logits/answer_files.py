"""Files of a black-box teacher's answers, read in batches: CSV, JSON lines and Parquet.

The text formats may be gzipped. A row is a text (or a pair) and a number for each class: a column
for each, or in JSON lines and Parquet one column that holds a list. What the numbers mean and
where they go is the business of `exchange`.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert_kd.data.tables import reading
from bert_kd.data.text_files import csv_records, json_object, open_text
from bert_kd.errors import DataError, nearest

TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
Format = Literal["csv", "jsonl", "parquet"]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AnswerColumns:
    """Where a row's texts and numbers stand."""

    text: str
    text_b: str | None
    classes: tuple[str, ...]
    """A column for each class, in order; of a list column, what its items stand for."""
    values: str | None
    """The column that holds a list of numbers; None: they stand in `classes`."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.text_b is None else (self.text, self.text_b)

    @property
    def all(self) -> tuple[str, ...]:
        return self.texts + (self.classes if self.values is None else (self.values,))


@dataclass(frozen=True)
class AnswerRows:
    """A batch of rows."""

    texts: list[str]
    texts_b: list[str] | None
    values: Values  # [rows, classes], all finite
    places: Sequence[int]
    """Line (text files) or row (Parquet) of each, from 1."""


def file_format(path: Path) -> Format:
    """Return the format that a file's name tells. Raises DataError for another one."""
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    match [suffix.lower() for suffix in suffixes]:
        case [".csv"] | [".csv", ".gz"]:
            return "csv"
        case [".jsonl"] | [".jsonl", ".gz"]:
            return "jsonl"
        case [".parquet"]:
            return "parquet"
    raise DataError(
        f"{path}: the format is told by the file's name, which must end in .csv, .jsonl (or one of "
        "these and .gz) or .parquet"
    )


def write_text_file(path: Path, zipped: bool) -> IO[str]:
    """Open a UTF-8 text file to be written, gzipped or not; line breaks are left as they are."""
    if zipped:
        return io.TextIOWrapper(gzip.GzipFile(path, "wb"), encoding="utf-8", newline="")
    return path.open("w", encoding="utf-8", newline="")


def column_names(path: Path) -> list[str]:
    """Return the column names of a file (JSON lines: the keys of the first). Raises DataError."""
    kind = file_format(path)
    with _readable(path):
        if kind == "parquet":
            return list(pq.read_schema(path).names)
        with open_text(path, newline="") as file:
            if kind == "csv":
                for _, names in _filled(path, file):
                    return [name.strip() for name in names]
            else:
                for _, row in _json_objects(path, file):
                    return list(row)
    raise DataError(f"{path} holds no rows")


def read_answers(path: Path, columns: AnswerColumns, batch_rows: int) -> Iterator[AnswerRows]:
    """Yield the rows of a file, at most `batch_rows` at a time.

    Raises DataError, naming file and line or row, for a missing column, ragged rows, text that is
    not UTF-8, a value that is not a finite number, a list of another length.
    """
    kind = file_format(path)
    with _readable(path):
        if kind == "parquet":
            with pq.ParquetFile(path) as parquet:
                yield from _parquet_rows(path, parquet, columns, batch_rows)
            return
        with open_text(path, newline="") as file:
            if kind == "csv":
                objects: Iterator[tuple[int, Mapping[str, Any]]] = _csv_objects(path, file, columns)
            else:
                objects = _json_objects(path, file)
            while part := list(islice(objects, batch_rows)):
                yield _to_rows(path, part, columns, kind)


def require_columns(place: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise DataError where one of the columns `wanted` is lacking or stands twice."""
    names = list(found)
    for name in wanted:
        if names.count(name) != 1:
            what = "stands twice" if name in names else f"is lacking{nearest(name, names)}"
            raise DataError(f"{place}: the column '{name}' {what}; found: {', '.join(names)}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what an unreadable file raises into DataError."""
    try:
        with reading(path):
            if path.is_dir():
                raise DataError(f"{path} is a folder: give a file")
            if not path.exists():
                raise DataError(f"{path} does not exist")
            yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds text that is not UTF-8 ({error}): write it again") from None
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({error}): write it again") from None


def _filled(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield (line at which it starts, fields) of each CSV record that is not blank."""
    return ((line, fields) for line, fields in csv_records(path, file, ",") if fields)


def _csv_objects(
    path: Path, file: TextIO, columns: AnswerColumns
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    records = _filled(path, file)
    line, header = next(records, (1, []))
    names = [name.strip() for name in header]
    require_columns(f"{path}, line {line}", names, columns.all)
    for line, fields in records:
        if len(fields) != len(names):
            raise DataError(
                f"{path}, line {line}: {len(fields)} columns found, {len(names)} expected: put a "
                "text that holds a comma in quotation marks"
            )
        yield line, dict(zip(names, fields, strict=True))


def _json_objects(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, text in enumerate(file, 1):
        if not text.isspace():
            yield line, json_object(path, line, text, [])


def _to_rows(
    path: Path, part: list[tuple[int, Mapping[str, Any]]], columns: AnswerColumns, kind: Format
) -> AnswerRows:
    """Return rows of text files, every value checked."""
    convert = float if kind == "csv" else _number
    texts: dict[str, list[str]] = {name: [] for name in columns.texts}
    values = np.empty((len(part), len(columns.classes)), dtype=np.float64)
    for at, (line, row) in enumerate(part):
        place = f"{path}, line {line}"
        if not row.keys() >= set(columns.all):
            require_columns(place, row, columns.all)
        for name in columns.texts:
            texts[name].append(_text(row[name], name, place))
        if columns.values is None:
            numbers = [row[name] for name in columns.classes]
        else:
            numbers = _list(row[columns.values], columns, place)
        try:
            values[at] = [convert(number) for number in numbers]
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{place}: an answer is not a number: {error}") from None
    return _checked(path, "line", texts, values, [line for line, _ in part], columns)


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(repr(value))
    return float(value)


def _list(value: Any, columns: AnswerColumns, place: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != len(columns.classes):
        what = f"{len(value)} values" if isinstance(value, list) else f"a {type(value).__name__}"
        raise DataError(
            f"{place}: '{columns.values}' holds {what}, expected is a list of "
            f"{len(columns.classes)} numbers ({', '.join(columns.classes)})"
        )
    return value


def _text(value: Any, name: str, place: str) -> str:
    """Return a text; an absent one (null) is empty, as in the data."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: the column '{name}' holds {value!r}, which is not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{place}: the column '{name}' holds half of a character (a lone surrogate)"
            ) from None
    return value


def _parquet_rows(
    path: Path, file: Any, columns: AnswerColumns, batch_rows: int
) -> Iterator[AnswerRows]:
    require_columns(str(path), file.schema_arrow.names, columns.all)
    for name in columns.texts:
        kind = file.schema_arrow.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_text(value) for is_text in TEXT_TYPES):
            raise DataError(f"{path}: the column '{name}' holds {kind}, not texts")
    done = 0
    for batch in file.iter_batches(batch_size=batch_rows, columns=list(columns.all)):
        texts = {
            name: [text or "" for text in batch.column(name).to_pylist()] for name in columns.texts
        }
        places = range(done + 1, done + batch.num_rows + 1)
        if columns.values is None:
            numbers = [_floats(path, batch.column(name), name, places) for name in columns.classes]
            values = np.stack(numbers, axis=1)  # [rows, classes]
        else:
            values = _parquet_lists(path, batch.column(columns.values), columns, places)
        yield _checked(path, "row", texts, values, places, columns)
        done += batch.num_rows


def _floats(path: Path, array: Any, name: str, places: Sequence[int]) -> Values:
    """Return a column of numbers, shape [rows]."""
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise DataError(f"{path}: the column '{name}' holds {array.type}, not numbers")
    if array.null_count:
        row = places[pc.index(array.is_null(), True).as_py() * len(places) // len(array)]
        raise DataError(f"{path}, row {row}: the column '{name}' holds no number")
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)


def _parquet_lists(path: Path, array: Any, columns: AnswerColumns, places: Sequence[int]) -> Values:
    """Return a column of lists, shape [rows, classes]."""
    kind, name, classes = array.type, str(columns.values), len(columns.classes)
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise DataError(f"{path}: the column '{name}' holds {kind}, not lists of numbers")
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != classes)
    if len(wrong):
        raise DataError(
            f"{path}, row {places[wrong[0]]}: '{name}' holds {lengths[wrong[0]]} values, expected "
            f"are {classes} ({', '.join(columns.classes)})"
        )
    return _floats(path, array.flatten(), name, places).reshape(len(array), classes)


def _checked(
    path: Path,
    unit: str,
    texts: Mapping[str, list[str]],
    values: Values,
    places: Sequence[int],
    columns: AnswerColumns,
) -> AnswerRows:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        found = ", ".join(str(value) for value in values[bad[0]])
        raise DataError(
            f"{path}, {unit} {places[bad[0]]}: an answer is not a finite number: {found}"
        )
    second = None if columns.text_b is None else texts[columns.text_b]
    return AnswerRows(texts[columns.text], second, values, places)
