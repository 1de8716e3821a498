"""Parquet files and hub data sets as batches of raw rows: both are Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_kd.data.tables import BATCH_ROWS, Columns, RawRows, checked, reading, require_columns
from bert_kd.errors import DataError


def count_parquet_rows(path: Path) -> int:
    """Return the rows of a Parquet file, from its footer. Raises DataError where it is none."""
    with _whole(path):
        return int(pq.read_metadata(path).num_rows)


def read_parquet(path: Path, columns: Columns) -> Iterator[RawRows]:
    """Yield the rows of a Parquet file. Raises DataError."""
    with _whole(path), pq.ParquetFile(path, pre_buffer=False) as file:
        names = file.schema_arrow.names
        require_columns(str(path), names, columns)
        picked = [name for _, name in columns.wanted() if name in names]
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=picked)
        yield from _rows(batches, columns, f"{path}, row")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what an unreadable or broken Parquet file raises into DataError."""
    try:
        with reading(path):
            yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({error}): write it again") from None


def read_dataset(name: str, dataset: Any, columns: Columns) -> Iterator[RawRows]:
    """Yield the rows of one split of a hub data set (`datasets.Dataset`, memory-mapped).

    Raises DataError.
    """
    require_columns(name, dataset.column_names, columns)
    picked = [column for _, column in columns.wanted() if column in dataset.column_names]
    tables = dataset.select_columns(picked).with_format("arrow").iter(batch_size=BATCH_ROWS)
    yield from _rows(tables, columns, f"{name}, row")


def _rows(batches: Iterator[Any], columns: Columns, where: str) -> Iterator[RawRows]:
    done = 0
    for batch in batches:
        values = {}
        for name in batch.schema.names:
            values[name] = _values(batch.column(name), name, done, where)
        yield checked(values, columns, list(range(done + 1, done + batch.num_rows + 1)), where)
        done += batch.num_rows


def _values(column: Any, name: str, done: int, where: str) -> list[Any]:
    """Return a column's values. Raises DataError naming the row whose text is not UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for row in range(len(column)):
            try:
                column[row].as_py()
            except UnicodeDecodeError:
                raise DataError(
                    f"{where} {done + row + 1}: the column '{name}' is not UTF-8: write the file "
                    "again"
                ) from None
        raise
