"""The rows of a prepared split, in and out of Parquet.

Columns: `key` (16 bytes), `text`, `text_b` (pairs only), `label` (-1: none) and `view` (0: the text
as given). Reading by batch and writing from batches keep memory constant. Pages carry checksums,
which reading verifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bert_kd.data.keys import KEY_BYTES, KEY_DTYPE, Keys, join_keys, key_bytes
from bert_kd.errors import DataError, StageError
from bert_kd.store import writing

GROUP_ROWS = 65_536
GROUP_BYTES = 32 * 2**20
"""A Parquet row group ends at whichever comes first: what a writer holds in memory at most."""


@dataclass(frozen=True)
class Rows:
    """Rows of a split."""

    keys: Keys  # [rows]
    texts: list[str]
    texts_b: list[str] | None
    labels: npt.NDArray[np.int64]  # [rows], -1: none
    views: npt.NDArray[np.int16]  # [rows], 0: as given

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Return these rows, in this order."""
        return Rows(
            self.keys[rows],
            [self.texts[row] for row in rows],
            None if self.texts_b is None else [self.texts_b[row] for row in rows],
            self.labels[rows],
            self.views[rows],
        )


def read_rows(path: Path) -> Rows:
    """Return all rows of a split.

    Raises StageError where it is missing, DataError where it is damaged.
    """
    batches = list(iterate_rows(path, GROUP_ROWS))
    if not batches:
        empty = np.zeros(0, dtype=np.int64)
        return Rows(np.zeros(0, KEY_DTYPE), [], None, empty, empty.astype(np.int16))
    pair = batches[0].texts_b is not None
    return Rows(
        keys=join_keys([batch.keys for batch in batches]),
        texts=[text for batch in batches for text in batch.texts],
        texts_b=[text for batch in batches for text in batch.texts_b or ()] if pair else None,
        labels=np.concatenate([batch.labels for batch in batches]),
        views=np.concatenate([batch.views for batch in batches]),
    )


def iterate_rows(path: Path, batch_rows: int = 8192) -> Iterator[Rows]:
    """Yield the rows of a split in order, at most `batch_rows` at a time.

    Raises as `read_rows` does.
    """
    if not path.exists():
        raise StageError(f"{path} is missing: run prepare-data first")
    try:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=batch_rows):
                yield _from_arrow(batch)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}): run prepare-data again") from error


def _from_arrow(batch: Any) -> Rows:
    """Return a record batch as rows."""
    return Rows(
        keys=keys_from_arrow(batch.column("key")),
        texts=batch.column("text").to_pylist(),
        texts_b=batch.column("text_b").to_pylist() if "text_b" in batch.schema.names else None,
        labels=batch.column("label").to_numpy(zero_copy_only=False).astype(np.int64),
        views=batch.column("view").to_numpy(zero_copy_only=False).astype(np.int16),
    )


def keys_from_arrow(column: Any) -> Keys:
    """Return the keys of an Arrow array of fixed-size binary values, shape [rows]."""
    data = column.buffers()[1]
    if data is None:
        return np.zeros(0, dtype=KEY_DTYPE)
    offset = column.offset * KEY_BYTES
    return np.frombuffer(data, dtype=KEY_DTYPE, count=len(column), offset=offset)


def keys_to_arrow(keys: Keys) -> Any:
    """Return keys as an Arrow array of fixed-size binary values."""
    data = pa.py_buffer(key_bytes(keys))
    return pa.Array.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, data])


def write_rows(path: Path, batches: Iterable[Rows]) -> str:
    """Write a split, whole or not at all; return its fingerprint.

    The fingerprint is 16 hexadecimal digits over the (key, label) of its rows in order.
    Batches are all single texts or all pairs. Where there is no row, the file holds the columns of
    single texts.
    """
    digest = hashlib.blake2b(digest_size=8)
    with writing(path) as aside:
        writer: pq.ParquetWriter | None = None
        try:
            for table in _grouped(_to_arrow(rows, digest) for rows in batches if len(rows)):
                if writer is None:
                    writer = _writer(aside, table.schema)
                writer.write_table(table, row_group_size=GROUP_ROWS)
            if writer is None:
                writer = _writer(aside, _schema(pair=False))
        finally:
            if writer is not None:
                writer.close()
    return digest.hexdigest()


def _writer(path: Path, schema: Any) -> Any:
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def _schema(pair: bool) -> Any:
    second = [("text_b", pa.string())] if pair else []
    return pa.schema(
        [
            ("key", pa.binary(KEY_BYTES)),
            ("text", pa.string()),
            *second,
            ("label", pa.int32()),
            ("view", pa.int16()),
        ]
    )


def _to_arrow(rows: Rows, digest: Any) -> Any:
    """Return rows as a record batch; add their keys and labels to `digest`."""
    # Interleaved, so that the fingerprint does not depend on where batches end.
    pairs = np.empty(len(rows), dtype=[("key", KEY_DTYPE), ("label", "<i8")])
    pairs["key"] = rows.keys
    pairs["label"] = rows.labels
    digest.update(pairs.tobytes())
    second = [] if rows.texts_b is None else [pa.array(rows.texts_b, pa.string())]
    return pa.record_batch(
        [
            keys_to_arrow(rows.keys),
            pa.array(rows.texts, pa.string()),
            *second,
            pa.array(rows.labels.astype(np.int32)),
            pa.array(rows.views.astype(np.int16)),
        ],
        schema=_schema(pair=rows.texts_b is not None),
    )


def _grouped(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield tables of about a row group each."""
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if (
            sum(part.num_rows for part in held) >= GROUP_ROWS
            or sum(part.nbytes for part in held) >= GROUP_BYTES
        ):
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
