"""One shard of a logit cache: a Parquet file of keys, logits and, if wanted, features.

A shard opens as it is in pandas, polars, DuckDB and Spark (as `part-*.parquet`; Spark knows no
float16 and, where there are features, wants `.schema("key binary, logits array<float>")`). Its
schema metadata name the format, the teacher and the labels. Pages carry checksums; as those leave
page headers and the footer uncovered, a digest of each column's values lies in the metadata too,
and every read compares it. Here is how one file is written and read; which files make up a cache is
the business of `cache`.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bert_kd import store
from bert_kd.data.keys import KEY_BYTES, KEY_DTYPE, Keys

FORMAT = 1
ROWS_PER_GROUP = 65_536
"""Rows that are read at once, however long the shard."""
DIGESTS = b"bert_kd.digests"

Logits = npt.NDArray[np.float32]
Features = npt.NDArray[np.float16]


class ShardDamaged(Exception):
    """A shard that is not what was written, or belongs elsewhere; the text says why."""


def shard_schema(teacher: str, labels: Sequence[str], feature_size: int | None) -> pa.Schema:
    """Return the schema of a shard, with what it belongs to in the metadata."""

    def rows_of(kind: Any, size: int) -> Any:
        return pa.list_(pa.field("element", kind, nullable=False), size)

    fields = [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("logits", rows_of(pa.float32(), len(labels)), nullable=False),
    ]
    if feature_size is not None:
        fields.append(pa.field("features", rows_of(pa.float16(), feature_size), nullable=False))
    metadata = {
        "bert_kd.format": str(FORMAT),
        "bert_kd.teacher": teacher,
        "bert_kd.labels": json.dumps(list(labels), ensure_ascii=False),
    }
    return pa.schema(fields, metadata=metadata)


def _digest(values: npt.NDArray[Any]) -> str:
    content = np.ascontiguousarray(values).view(np.uint8).data
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def write_shard(
    path: Path, schema: pa.Schema, keys: Keys, logits: Logits, features: Features | None
) -> None:
    """Write keys [rows], logits [rows, classes], features [rows, size], whole or not at all.

    Raises UserError where the disk is full.
    """
    columns: dict[str, npt.NDArray[Any]] = {"key": keys, "logits": logits}
    if features is not None:
        columns["features"] = features
    groups = range(0, len(keys), ROWS_PER_GROUP)
    digests = {
        name: [_digest(values[start : start + ROWS_PER_GROUP]) for start in groups]
        for name, values in columns.items()
    }
    arrays = [
        _to_arrow(np.ascontiguousarray(values), schema.field(name).type)
        for name, values in columns.items()
    ]
    full = schema.with_metadata({**schema.metadata, DIGESTS: json.dumps(digests)})
    table = pa.Table.from_arrays(arrays, schema=full)
    with store.writing(path) as aside:
        pq.write_table(
            table,
            aside,
            row_group_size=ROWS_PER_GROUP,
            write_page_checksum=True,
            # Keys are as good as random, logits nearly: neither repeats, nor can a range of them
            # be skipped.
            use_dictionary=False,
            write_statistics=False,
        )


def _to_arrow(values: npt.NDArray[Any], kind: Any) -> Any:
    if values.dtype == KEY_DTYPE:
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    flat = pa.array(values.reshape(-1))
    return pa.Array.from_buffers(kind, len(values), [None], children=[flat])


def _to_numpy(column: Any) -> npt.NDArray[Any]:
    """Return a column as an array: keys [rows], anything else [rows, size]."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_binary(array.type):
        return np.frombuffer(array.buffers()[1], dtype=KEY_DTYPE)[array.offset :][: len(array)]
    values: npt.NDArray[Any] = array.flatten().to_numpy()
    return values.reshape(len(array), array.type.list_size)


@contextmanager
def _naming_damage() -> Iterator[None]:
    """Turn what a broken file makes pyarrow raise into ShardDamaged; errors of the system pass."""
    try:
        yield
    except MemoryError:  # pyarrow's is an ArrowException too, and says nothing of the file
        raise
    except OSError as error:
        # pyarrow's own complaints carry no errno; EIO says that the disk cannot read the block.
        if error.errno not in (None, errno.EIO):
            raise
        raise ShardDamaged(_first_line(error)) from error
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise ShardDamaged(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Shard:
    """A shard opened for reading, its schema checked; reads compare checksums and digests.

    Raises ShardDamaged where the file is broken or not one that `schema` describes,
    FileNotFoundError where it is gone.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        with _naming_damage():
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        try:
            with _naming_damage():
                self._digests = _check_schema(self._file.schema_arrow, schema)
            if any(len(found) != len(self) for found in self._digests.values()):
                raise ShardDamaged("its footer has lost row groups")
        except ShardDamaged:
            self._file.close()
            raise

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Row groups: a shard is read one group at a time."""
        return int(self._file.num_row_groups)

    def keys(self, group: int) -> Keys:
        """Return the keys of a row group, shape [rows]."""
        return self._column(group, "key")

    def logits(self, group: int) -> Logits:
        """Return the logits of a row group, shape [rows, classes], all finite."""
        return self._finite(group, "logits")

    def features(self, group: int) -> Features:
        """Return the features of a row group, shape [rows, size], all finite."""
        return self._finite(group, "features")

    @property
    def has_features(self) -> bool:
        return "features" in self._digests

    def _finite(self, group: int, name: str) -> npt.NDArray[Any]:
        values = self._column(group, name)
        if not np.isfinite(values).all():
            raise ShardDamaged(f"column '{name}' holds values that are not finite")
        return values

    def _column(self, group: int, name: str) -> npt.NDArray[Any]:
        with _naming_damage():
            table = self._file.read_row_group(group, columns=[name], use_threads=False)
            values = _to_numpy(table.column(0))
        if _digest(values) != self._digests[name][group]:
            raise ShardDamaged(f"column '{name}' is not what was written")
        return values


def _check_schema(found: pa.Schema, wanted: pa.Schema) -> dict[str, list[str]]:
    """Return the digests of each column's row groups; ShardDamaged if `found` is not `wanted`."""
    metadata = found.metadata or {}
    for name, value in wanted.metadata.items():
        if metadata.get(name) != value:
            there = metadata.get(name, b"nothing").decode(errors="replace")
            raise ShardDamaged(f"its {name.decode()} is {there}, this cache's is {value.decode()}")
    if not found.equals(wanted, check_metadata=False):
        there, here = (_describe(schema) for schema in (found, wanted))
        raise ShardDamaged(f"its columns are {there}, this cache's are {here}")
    digests: dict[str, list[str]] = json.loads(metadata[DIGESTS])
    if set(digests) != set(wanted.names):
        raise ShardDamaged("its digests are of other columns")
    return digests


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
