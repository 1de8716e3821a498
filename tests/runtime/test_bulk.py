"""Files in, the same files with answers out: nothing lost, nothing out of order, nothing half."""

from __future__ import annotations

import csv
import datetime
import gzip
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_students import TEXTS, WORDS, make_bundle

from bert_kd.errors import BundleError, DataError, UserError
from bert_kd.runtime.bulk import predict_file
from bert_kd.runtime.kept_answers import keeping
from bert_kd.runtime.predictor import Predictor, load

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz", ".tsv.gz")
ROWS = [{"id": str(at), "text": text, "note": f"n{at}"} for at, text in enumerate(TEXTS)]

MANY = [f"the film number {at} was {'good' if at % 3 else 'bad'}" for at in range(95)]


@pytest.fixture(scope="module")
def predictor(bundle):
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def pair_predictor(pair_bundle):
    return load(pair_bundle, threads=1)


def opened(path, mode):
    return (gzip.open if path.suffix == ".gz" else open)(
        path, mode + "t", encoding="utf-8", newline=""
    )


def save(path, rows):
    """Write rows with the plainest means there are."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with opened(path, "w") as file:
        if ".jsonl" in path.name:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif ".tsv" in path.name:
            lines = [list(rows[0]), *(row.values() for row in rows)]
            file.writelines("\t".join(line) + "\n" for line in lines)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with opened(path, "r") as file:
        if ".jsonl" in path.name:
            return [json.loads(line) for line in file]
        if ".tsv" in path.name:
            lines = [line.rstrip("\n").split("\t") for line in file]
            return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("before", "after"), [*itertools.product(ENDINGS, ENDINGS[:5])])
def test_any_format_to_any_format(predictor, tmp_path, before, after):
    source = save(tmp_path / f"in{before}", ROWS)
    output = tmp_path / f"out{after}"

    done = predict_file(predictor, source, output, batch_rows=3, probabilities=True)

    rows = read(output)
    assert list(rows[0]) == [
        "id",
        "text",
        "note",
        "label",
        "score",
        "score_negative",
        "score_neutral",
        "score_positive",
    ]
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    probabilities = predictor.probabilities(TEXTS)
    assert [row["label"] for row in rows] == [
        predictor.labels[at] for at in probabilities.argmax(-1)
    ]
    found = [[float(row[f"score_{label}"]) for label in predictor.labels] for row in rows]
    np.testing.assert_allclose(found, probabilities, atol=1e-6)
    assert [float(row["score"]) for row in rows] == [max(scores) for scores in found]
    assert done.rows == len(ROWS)
    assert done.columns == tuple(rows[0])[3:]
    assert done.rows_per_second == pytest.approx(done.rows / done.seconds)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_many_parts_keep_their_order(predictor, tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 20))) for _ in range(1000)]
    source = save(tmp_path / "in.parquet", [{"at": at, "t": text} for at, text in enumerate(texts)])
    predict_file(predictor, source, tmp_path / "out.parquet", text="t", batch_rows=64)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["at"].to_pylist() == list(range(1000))
    expected = predictor.probabilities(texts).max(-1)
    np.testing.assert_allclose(table["score"].to_numpy(), expected, atol=1e-6)


def test_one_part_is_in_memory_at_a_time(predictor, tmp_path, monkeypatch):
    source = save(tmp_path / "in.csv", ROWS * 10)
    sizes = []
    honest = type(predictor).probabilities

    def watched(self, texts, texts_b=None):
        sizes.append(len(texts))
        return honest(self, texts, texts_b)

    monkeypatch.setattr(type(predictor), "probabilities", watched)
    predict_file(predictor, source, tmp_path / "out.csv", batch_rows=32)
    assert sizes == [32, 32, 6]


def test_pairs(pair_predictor, tmp_path):
    source = save(tmp_path / "in.tsv", [{"a": "a film", "b": "very long"}, {"a": "bad", "b": ""}])
    predict_file(pair_predictor, source, tmp_path / "out.jsonl", text="a", text_b="b")
    answer = pair_predictor({"text": "a film", "text_pair": "very long"})
    row = read(tmp_path / "out.jsonl")[0]
    assert row["label"] == answer["label"]
    assert row["score"] == pytest.approx(answer["score"], abs=1e-6)


def test_a_label_column_of_the_input_stays(predictor, tmp_path):
    rows = [{"text": "a film", "label": "positive", "score": "7"}]
    predict_file(predictor, save(tmp_path / "in.csv", rows), tmp_path / "out.csv")
    row = read(tmp_path / "out.csv")[0]
    assert (row["label"], row["score"]) == ("positive", "7")
    assert row["predicted_label"] in predictor.labels
    assert 0 < float(row["predicted_score"]) < 1


def test_columns_that_leave_no_name_are_refused(predictor, tmp_path):
    rows = [{"text": "a", "label": "b", "predicted_label": "c"}]
    with pytest.raises(DataError, match="has a column 'predicted_label' already"):
        predict_file(predictor, save(tmp_path / "in.csv", rows), tmp_path / "out.csv")
    source = save(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b", "score": 1}])
    with pytest.raises(DataError, match="line 2 or later: the key 'score'"):
        predict_file(predictor, source, tmp_path / "out.jsonl", batch_rows=1)


def test_types_live_on_from_parquet_to_parquet(predictor, tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a film", None]).dictionary_encode(),
            "when": pa.array([datetime.datetime(2020, 1, 2), None], pa.timestamp("ms")),
            "tags": pa.array([["x"], []], pa.list_(pa.string())),
            "raw": pa.array([b"\x00", b"\xff"]),
            "count": pa.array([1, 2], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
    result = pq.read_table(tmp_path / "out.parquet")
    assert result.drop_columns(["label", "score"]).equals(table)
    assert result.schema.field("score").type == pa.float32()


def test_parquet_as_text(predictor, tmp_path):
    table = pa.table(
        {
            "text": ["a film"],
            "when": [datetime.date(2020, 1, 2)],
            "tags": [["ä", "b"]],
            "yes": [True],
            "none": pa.array([None], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    cells, row = read(tmp_path / "out.csv")[0], read(tmp_path / "out.jsonl")[0]
    assert [cells[key] for key in ("when", "tags", "yes", "none")] == [
        "2020-01-02",
        '["ä", "b"]',
        "true",
        "",
    ]
    assert [row[key] for key in ("when", "tags", "yes", "none")] == [
        "2020-01-02",
        ["ä", "b"],
        True,
        None,
    ]


def test_values_in_cells_look_as_in_json_lines(predictor, tmp_path):
    table = pa.table(
        {
            "text": ["a film"],
            "raw": [b"\xff\x00"],
            "numbers": [[1.0, float("nan")]],
            "map": pa.array([[("k", float("inf"))]], pa.map_(pa.string(), pa.float64())),
            "when": [datetime.datetime(2020, 1, 2, 3)],
            "key": pa.array([b"\x01" * 16], pa.uuid()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    cells, row = read(tmp_path / "out.csv")[0], read(tmp_path / "out.jsonl")[0]
    assert (cells["raw"], cells["when"]) == ("/wA=", "2020-01-02T03:00:00")
    assert (cells["raw"], cells["when"], cells["key"]) == (row["raw"], row["when"], row["key"])
    for name, value in (("numbers", [1.0, None]), ("map", [["k", None]])):
        assert json.loads(cells[name]) == row[name] == value


@pytest.mark.parametrize("before", [".csv", ".jsonl", ".parquet"])
def test_scores_are_rounded_in_text_files_only(predictor, tmp_path, before):
    mine = 0.12345678901234567
    source = save(tmp_path / f"in{before}", [{"text": "a film", "mine": mine}])
    for after in (".csv", ".jsonl"):
        predict_file(predictor, source, tmp_path / f"out{after}", probabilities=True)
        row = read(tmp_path / f"out{after}")[0]
        scores = [row[name] for name in row if name.startswith("score")]
        assert len(scores) == 4 and all(len(str(score)) <= len("0.123456") for score in scores)
        assert float(row["mine"]) == mine
    predict_file(predictor, source, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("score").type == pa.float32()
    assert table["score"][0].as_py() == predictor.probabilities(["a film"]).max()


def test_quotes_and_line_breaks_in_csv(predictor, tmp_path):
    rows = [{"text": 'a "good", film\nand so', "note": "x"}]
    predict_file(predictor, save(tmp_path / "in.csv", rows), tmp_path / "out.csv")
    assert read(tmp_path / "out.csv")[0]["text"] == rows[0]["text"]
    with pytest.raises(DataError, match="row 2: .* which TSV cannot"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_json_lines_whose_keys_differ(predictor, tmp_path):
    rows = [{"text": "a", "n": 1}, {"more": [1.5], "text": None}]
    source = save(tmp_path / "in.jsonl", rows)
    predict_file(predictor, source, tmp_path / "out.jsonl", batch_rows=1)
    written = read(tmp_path / "out.jsonl")
    assert [list(row) for row in written] == [
        ["text", "n", "label", "score"],
        ["more", "text", "label", "score"],
    ]
    for name in ("out.csv", "out.parquet"):
        with pytest.raises(DataError, match="have the key 'more'"):
            predict_file(predictor, source, tmp_path / name, batch_rows=1)


def test_values_that_change_their_type(predictor, tmp_path):
    source = save(tmp_path / "in.jsonl", [{"text": "a", "n": 1}, {"text": "b", "n": "one"}])
    for batch_rows in (1, 2):
        with pytest.raises(DataError, match="'n' does not fit into one Parquet type"):
            predict_file(predictor, source, tmp_path / "out.parquet", batch_rows=batch_rows)


@pytest.mark.parametrize(
    ("value", "after", "message"),
    [
        ("[" * 600 + "]" * 600, ".jsonl", "row 1 cannot be written as JSON .*recursion"),
        ("[" * 600 + "]" * 600, ".csv", "row 1 cannot be written as text .*recursion"),
        ("[" * 300 + "1" + "]" * 300, ".parquet", "too deeply nested.*write to a .jsonl file"),
        ('{"a":' * 300 + "1" + "}" * 300, ".parquet", "too deeply nested.*write to a .jsonl file"),
        ("{}", ".parquet", "no child field.*write to a .jsonl file"),
    ],
)
def test_values_that_a_format_cannot_hold(predictor, tmp_path, value, after, message):
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"text": "a", "x": {value}}}\n')
    with pytest.raises(DataError, match=message):
        predict_file(predictor, source, tmp_path / f"out{after}")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_is_written_as_parquet_can_be_read(predictor, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a", "x": ' + "[" * 49 + "1" + "]" * 49 + "}\n")
    predict_file(predictor, source, tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet")[0]["x"] == json.loads("[" * 49 + "1" + "]" * 49)


@pytest.mark.parametrize("after", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_keys_that_are_no_text(predictor, tmp_path, after):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a", "\\ud800": 1}\n')
    message = "row 1 cannot" if after == ".jsonl" else r"key '\\ud800' holds half of a character"
    with pytest.raises(DataError, match=message):
        predict_file(predictor, source, tmp_path / f"out{after}")


def test_a_key_that_a_tsv_header_cannot_hold(predictor, tmp_path):
    source = save(tmp_path / "in.jsonl", [{"text": "a", "x\ty": 1}])
    with pytest.raises(DataError, match="header: .* which TSV cannot"):
        predict_file(predictor, source, tmp_path / "out.tsv")


@pytest.mark.parametrize("after", [".csv", ".jsonl", ".parquet"])
def test_no_rows(predictor, tmp_path, after):
    (tmp_path / "in.csv").write_text("text,more\n")
    (tmp_path / "in.jsonl").write_text("")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    for before in (".csv", ".jsonl", ".parquet"):
        output = tmp_path / f"out-{before[1:]}{after}"
        assert predict_file(predictor, tmp_path / f"in{before}", output).rows == 0
        assert read(output) == []
    if after == ".csv":
        assert (tmp_path / "out-csv.csv").read_text() == "text,more,label,score\n"


def test_what_lies_there_is_not_overwritten_unasked(predictor, tmp_path):
    source = save(tmp_path / "in.csv", ROWS)
    output = tmp_path / "out.csv"
    output.write_text("precious")
    with pytest.raises(DataError, match="is there already"):
        predict_file(predictor, source, output)
    assert output.read_text() == "precious"
    predict_file(predictor, source, output, overwrite=True)
    assert len(read(output)) == len(ROWS)


def test_output_is_not_the_input(predictor, tmp_path):
    source = save(tmp_path / "in.csv", ROWS)
    (tmp_path / "link.csv").symlink_to(source)
    for output in (source, tmp_path / "link.csv", tmp_path / "." / "in.csv"):
        with pytest.raises(DataError, match="is the input itself"):
            predict_file(predictor, source, output, overwrite=True)
    assert read(source) == ROWS


def test_a_failure_leaves_no_half_output(predictor, tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text("id\ttext\n" + "1\ta\n" * 5 + "1\ta\ttoo much\n")
    (tmp_path / "out.tsv").write_text("older")
    with pytest.raises(DataError, match="line 7: 3 columns found, 2 expected"):
        predict_file(predictor, source, tmp_path / "out.tsv", overwrite=True, batch_rows=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tsv", "out.tsv"]
    assert (tmp_path / "out.tsv").read_text() == "older"


REFUSED = {
    "in.csv": ("sentence\na\n", "there is no column 'text'.*found: sentence.*--column"),
    "typo.csv": ("texts\na\n", r"did you mean 'texts'\?"),
    "twice.csv": ("text,text\na,b\n", "'text' is there twice"),
    "nothing.csv": ("", "is empty"),
    "in.jsonl": ('{"text": "a"}\n{"txt": "b"}\n', "line 2: there is no key 'text'"),
    "number.jsonl": ('{"text": 5}\n', "line 1: the column 'text' holds 5"),
    "half.jsonl": ('{"text": "\\ud800"}\n', "line 1: .*half of a character"),
    "broken.jsonl": ('{"text": "a"\n', "line 1: not JSON"),
    "other.jsonl": ('{"text": "a", "n": "\\udfff"}\n', "row 1 cannot be written as JSON"),
    "in.parquet": ("PAR1 not really", "not a whole Parquet file"),
    "in.csv.gz": ("not packed", "not a whole gzip file"),
    "in.xlsx": ("", "ending '.xlsx' names no known format"),
    "in.parquet.gz": ("", "leave .gz out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_input_that_cannot_be_used(predictor, tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        predict_file(predictor, tmp_path / name, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parquet_texts_of_another_type(predictor, tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="row 1: the column 'text' holds 1"):
        predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_missing_files_and_mixed_up_bundles(predictor, pair_predictor, tmp_path):
    source = save(tmp_path / "in.csv", ROWS)
    with pytest.raises(DataError, match="no such file"):
        predict_file(predictor, tmp_path / "none.csv", tmp_path / "out.csv")
    with pytest.raises(DataError, match="is a folder"):
        (tmp_path / "folder.csv").mkdir()
        predict_file(predictor, source, tmp_path / "folder.csv")
    with pytest.raises(BundleError, match="--text-b"):
        predict_file(pair_predictor, source, tmp_path / "out.csv")
    with pytest.raises(BundleError, match="reads single texts"):
        predict_file(predictor, source, tmp_path / "out.csv", text_b="note")


@pytest.mark.parametrize("name", ["folder", "folder.csv", "folder.parquet"])
def test_a_folder_is_no_input(predictor, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="is a folder: give a file in it"):
        predict_file(predictor, tmp_path / name, tmp_path / "out.csv")


@pytest.mark.parametrize("after", [".csv", ".parquet"])
def test_outputs_that_cannot_be_written(predictor, tmp_path, after):
    source = save(tmp_path / "in.csv", ROWS)
    # What lies beside the output until it is whole has longer names than the output.
    for length in (300, 252, 243):
        output = tmp_path / ("o" * (length - len(after)) + after)
        with pytest.raises(UserError, match=r"\(File name too long\)"):
            predict_file(predictor, source, output)
    with pytest.raises(
        UserError, match=r"x\.\w+ cannot be written .*: choose another name or place"
    ):
        predict_file(predictor, source, Path("/proc") / f"x{after}")
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\)"):
        predict_file(predictor, tmp_path / ("i" * 300 + ".csv"), tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_parquet_with_a_column_twice_is_refused(predictor, tmp_path):
    table = pa.table([["a"], [1], [2]], names=["text", "x", "x"])
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(DataError, match="'x' is there twice"):
        predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.jsonl")


def test_values_that_json_has_not(predictor, tmp_path):
    table = pa.table(
        {
            "text": ["a", "b"],
            "number": [float("nan"), 1.5],
            "bytes": [b"\xff", None],
            "span": pa.array([1_000_000, None], pa.duration("us")),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["number"], first["bytes"], first["span"]) == (None, "/w==", "0:00:01")
    assert (second["number"], second["bytes"], second["span"]) == (1.5, None, None)


def test_text_that_is_broken_inside_parquet_is_refused(predictor, tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"text": ["a"], "other": broken}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="cannot show"):
        predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.jsonl")


# --- killed, and going on ------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from bert_kd.runtime.bulk import predict_file
from bert_kd.runtime.predictor import Predictor, load

asked, honest = [], Predictor.probabilities

def probabilities(self, texts, texts_b=None):
    asked.append(texts)
    if len(asked) > int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, texts, texts_b)

Predictor.probabilities = probabilities
predict_file(load(sys.argv[1], threads=1), Path(sys.argv[2]), Path(sys.argv[3]), batch_rows=10)
"""


@pytest.fixture
def asked(monkeypatch):
    """The numbers of texts that predictors are asked for together."""
    sizes = []
    honest = Predictor.probabilities

    def watched(self, texts, texts_b=None):
        sizes.append(len(texts))
        return honest(self, texts, texts_b)

    monkeypatch.setattr(Predictor, "probabilities", watched)
    return sizes


def kill(bundle, source, output, parts):
    """Run into SIGKILL when so many parts are answered."""
    command = [sys.executable, "-c", KILLED, str(bundle), str(source), str(output), str(parts)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()


@pytest.mark.parametrize("after", [".parquet", ".csv"])
def test_a_killed_run_goes_on_where_it_was(bundle, predictor, asked, tmp_path, after):
    rows = [{"at": at, "text": text} for at, text in enumerate(MANY)]
    source, output = save(tmp_path / "in.parquet", rows), tmp_path / f"out{after}"
    predict_file(predictor, source, tmp_path / f"whole{after}", batch_rows=10)
    for parts in (4, 2):  # killed twice
        kill(bundle, source, output, parts)
    assert [path.name for path in tmp_path.glob(".*.answers")] == [f".out{after}.answers"]
    asked.clear()

    done = predict_file(predictor, source, output, batch_rows=10)

    assert (done.rows, done.resumed, sum(asked)) == (95, 60, 35)
    assert output.read_bytes() == (tmp_path / f"whole{after}").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_changed_is_answered_anew(bundle, predictor, asked, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    save(source, [{"text": text} for text in MANY])
    kill(bundle, source, output, 5)
    save(source, [{"text": text} for text in MANY[:25] + ["another"] + MANY[26:]])
    asked.clear()
    assert predict_file(predictor, source, output, batch_rows=10).resumed == 20
    assert sum(asked) == 75
    texts = [row["text"] for row in read(output)]
    assert texts == MANY[:25] + ["another"] + MANY[26:]
    expected = predictor.probabilities(texts).max(-1)
    found = [float(row["score"]) for row in read(output)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_model_answers_all_anew(bundle, tmp_path_factory, asked, tmp_path):
    source, output = save(tmp_path / "in.csv", [{"text": text} for text in MANY]), "out.csv"
    kill(bundle, source, tmp_path / output, 5)
    other = load(make_bundle(tmp_path_factory.mktemp("other"), hidden=9), threads=1)
    asked.clear()
    assert predict_file(other, source, tmp_path / output, batch_rows=10).resumed == 0
    assert sum(asked) == 95


@pytest.mark.parametrize("cut", [1, 40, 10_000])
@pytest.mark.parametrize("how", ["cut", "changed"])
def test_answers_that_are_damaged_are_not_taken(bundle, predictor, tmp_path, how, cut):
    source, output = save(tmp_path / "in.csv", [{"text": text} for text in MANY]), "out.csv"
    kill(bundle, source, tmp_path / output, 5)
    kept = tmp_path / ".out.csv.answers"
    content = bytearray(kept.read_bytes())
    place = max(len(content) - cut, 0)
    if how == "cut":
        del content[place:]
    else:
        content[place] ^= 1
    kept.write_bytes(content)
    done = predict_file(predictor, source, tmp_path / output, batch_rows=10)
    assert done.resumed == (40 if cut < 10_000 else 0)
    predict_file(predictor, source, tmp_path / "whole.csv", batch_rows=10)
    assert (tmp_path / output).read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_two_runs_do_not_make_one_output(bundle, predictor, tmp_path):
    source, output = save(tmp_path / "in.csv", [{"text": text} for text in MANY]), "out.csv"
    kill(bundle, source, tmp_path / output, 5)
    with keeping(tmp_path / output, "another"):
        with pytest.raises(DataError, match="another run makes this output"):
            predict_file(predictor, source, tmp_path / output, batch_rows=10)


def test_a_mended_file_goes_on(predictor, asked, tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text("id\ttext\n" + "1\ta\n" * 25 + "1\ta\ttoo much\n")
    with pytest.raises(DataError, match="line 27"):
        predict_file(predictor, source, tmp_path / "out.tsv", batch_rows=10)
    source.write_text(source.read_text().replace("\ttoo much", ""))
    assert predict_file(predictor, source, tmp_path / "out.tsv", batch_rows=10).resumed == 20
    assert len(read(tmp_path / "out.tsv")) == 26
