"""Splits in and out of Parquet."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from bert_kd.data.keys import row_keys
from bert_kd.data.rows import GROUP_ROWS, Rows, iterate_rows, read_rows, write_rows
from bert_kd.errors import DataError, StageError


def rows_of(texts, texts_b=None, label=1, view=0):
    labels = np.full(len(texts), label, dtype=np.int64)
    views = np.full(len(texts), view, dtype=np.int16)
    return Rows(row_keys(texts, texts_b), texts, texts_b, labels, views)


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "train.parquet"
    texts = ["", "naïve 店 \x00 \u2028", 'a "quote"']
    write_rows(path, [rows_of(texts, label=-1, view=3)])
    found = read_rows(path)
    assert found.texts == texts and found.texts_b is None
    assert found.keys.tolist() == row_keys(texts).tolist()
    assert found.labels.tolist() == [-1, -1, -1] and found.labels.dtype == np.int64
    assert found.views.tolist() == [3, 3, 3] and found.views.dtype == np.int16


def test_pairs_come_back_in_both_columns(tmp_path):
    path = tmp_path / "train.parquet"
    write_rows(path, [rows_of(["a", "b"], ["c", "d"]), rows_of(["e"], ["f"])])
    found = read_rows(path)
    assert (found.texts, found.texts_b) == (["a", "b", "e"], ["c", "d", "f"])


def test_the_file_has_the_promised_columns_and_types(tmp_path):
    path = tmp_path / "train.parquet"
    write_rows(path, [rows_of(["a"], ["b"])])
    schema = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert schema == {
        "key": "fixed_size_binary[16]",
        "text": "string",
        "text_b": "string",
        "label": "int32",
        "view": "int16",
    }


def test_iterating_gives_every_row_once_in_small_batches(tmp_path):
    path = tmp_path / "train.parquet"
    texts = [f"text {number}" for number in range(1000)]
    write_rows(path, (rows_of(texts[at : at + 77]) for at in range(0, 1000, 77)))
    batches = list(iterate_rows(path, 300))
    assert max(map(len, batches)) == 300
    assert [text for batch in batches for text in batch.texts] == texts
    joined = np.concatenate([batch.keys for batch in batches])
    assert joined.tolist() == row_keys(texts).tolist()


def test_small_batches_are_gathered_into_row_groups(tmp_path):
    path = tmp_path / "train.parquet"
    write_rows(path, (rows_of([f"{number}"] * 1024) for number in range(2 * GROUP_ROWS // 1024)))
    assert pq.read_metadata(path).num_row_groups == 2


def test_the_fingerprint_goes_by_keys_labels_and_order_not_by_batches(tmp_path):
    path = tmp_path / "train.parquet"
    whole = write_rows(path, [rows_of(["a", "b", "c"])])
    assert write_rows(path, [rows_of(["a"]), rows_of(["b", "c"])]) == whole
    assert write_rows(path, [rows_of(["b", "a", "c"])]) != whole
    assert write_rows(path, [rows_of(["a", "b", "c"], label=0)]) != whole
    assert write_rows(path, [rows_of(["a", "b", "d"])]) != whole


def test_a_split_without_rows_can_be_read(tmp_path):
    path = tmp_path / "transfer.parquet"
    write_rows(path, [])
    assert len(read_rows(path)) == 0 and read_rows(path).texts == []


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "train.parquet"
    write_rows(path, [rows_of(["old"])])

    def failing():
        yield rows_of(["new"])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_rows(path, failing())
    assert read_rows(path).texts == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["train.parquet"]


def test_a_missing_split_names_the_stage_to_run(tmp_path):
    with pytest.raises(StageError, match="run prepare-data first"):
        read_rows(tmp_path / "train.parquet")


@pytest.mark.parametrize("damage", ["cut short", "a byte changed"])
def test_a_damaged_split_is_refused(tmp_path, damage):
    path = tmp_path / "train.parquet"
    write_rows(path, [rows_of([f"text {number}" for number in range(1000)])])
    data = bytearray(path.read_bytes())
    if damage == "cut short":
        del data[len(data) // 2 :]
    else:
        data[2000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged.*run prepare-data again"):
        read_rows(path)
