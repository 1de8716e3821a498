"""Parquet files as sources."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_kd.data.arrow_tables import count_parquet_rows, read_parquet
from bert_kd.data.tables import BATCH_ROWS, Columns
from bert_kd.errors import DataError

SINGLE = Columns("text", label="label")


@pytest.fixture
def table(folder):
    """Write columns as a Parquet file."""

    def write_table(**columns):
        path = folder / "train.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write_table


def refused(path, columns=SINGLE):
    with pytest.raises(DataError) as caught:
        list(read_parquet(path, columns))
    return str(caught.value)


def test_columns_are_read_by_name_in_batches_with_row_numbers(table):
    count = BATCH_ROWS + 3
    path = table(
        more=pa.array(range(count)),
        label=pa.array([number % 3 for number in range(count)], pa.int8()),
        text=pa.array([f"text {number}" for number in range(count)], pa.large_string()),
    )
    batches = list(read_parquet(path, SINGLE))
    assert [len(batch) for batch in batches] == [BATCH_ROWS, 3]
    assert batches[1].texts == [f"text {BATCH_ROWS + number}" for number in range(3)]
    assert batches[1].lines == [BATCH_ROWS + number for number in (1, 2, 3)]
    assert batches[0].labels[:4] == [0, 1, 2, 0]
    assert count_parquet_rows(path) == count


def test_categories_and_nulls_are_understood(table):
    labels = pa.array(["no", None, "yes"]).dictionary_encode()
    batch = next(read_parquet(table(text=["a", None, "c"], label=labels), SINGLE))
    assert batch.texts == ["a", "", "c"]
    assert batch.labels == ["no", None, "yes"]


def test_floats_are_written_as_in_a_text_file_and_truth_values_have_names(table):
    labels = pa.array([1.0, None, float("nan"), 1.5, 1e20, -2.0])
    batch = next(read_parquet(table(text=["a"] * 6, label=labels), SINGLE))
    assert batch.labels == ["1.0", None, None, "1.5", "100000000000000000000.0", "-2.0"]
    batch = next(read_parquet(table(text=["a"] * 3, label=[True, None, False]), SINGLE))
    assert batch.labels == ["true", None, "false"]


def test_pairs_are_read(table):
    path = table(first=["a"], second=["b"], label=[1])
    batch = next(read_parquet(path, Columns("first", "second", "label")))
    assert (batch.texts, batch.texts_b) == (["a"], ["b"])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": [1, 2], "label": [0, 1]}, "row 1: the column 'text' holds 1 (int)"),
        (
            {"text": ["a", "b"], "label": [1.0, float("inf")]},
            "row 2: the label column 'label' holds inf",
        ),
        ({"text": ["a", "b"], "label": [[1], [0]]}, "holds [1] (list)"),
        ({"text": [b"a", b"b"], "label": [1, 0]}, "holds b'a' (bytes)"),
        ({"txt": ["a", "b"], "label": [1, 0]}, "no column 'text' (did you mean 'txt'?)"),
    ],
)
def test_wrong_types_and_columns_are_refused_with_their_row(table, columns, words):
    path = table(**columns)
    message = refused(path)
    assert str(path) in message and words in message


def test_text_that_is_not_utf8_is_refused_with_its_row(table):
    data = pa.array([b"good", b"caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, data.buffers())
    assert "row 2: the column 'text' is not UTF-8" in refused(table(text=text, label=[0, 1]))


def test_a_file_that_the_system_refuses_is_told_with_the_reason(table, monkeypatch):
    def refusing(*given, **settings):
        # As pyarrow raises it: the file stands in the sentence alone.
        raise PermissionError(13, "Failed to open local file. Detail: [errno 13]")

    path = table(text=["a"], label=[1])
    monkeypatch.setattr(pq, "ParquetFile", refusing)
    monkeypatch.setattr(pq, "read_metadata", refusing)
    told = f"{path} cannot be read (Permission denied): make it readable"
    assert told in refused(path)
    with pytest.raises(DataError) as caught:
        count_parquet_rows(path)
    assert told in str(caught.value)


def test_a_damaged_file_is_told_to_be_none(table):
    path = table(text=["a"] * 1000, label=[1] * 1000)
    path.write_bytes(b"PAR1" + b"\xff" * 400 + path.read_bytes()[-300:])
    assert f"{path} is not a whole Parquet file" in refused(path)
