"""Black-box answers come in by text, from every format, and go out with their texts."""

from __future__ import annotations

import csv
import errno
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from known_answers import LABELS, answers, keys, texts

from bert_kd.data.keys import row_keys
from bert_kd.data.rows import Rows, write_rows
from bert_kd.errors import CacheError, DataError
from bert_kd.logits import exchange
from bert_kd.logits.cache import LogitCache
from bert_kd.logits.combine import softmax
from bert_kd.logits.exchange import export_answers, import_answers

PROBABILITIES = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]
TEXTS = ["where is it?", 'he said "no", twice', "zwei\nZeilen, äöü", "plain"]


def write_table(path, columns):
    """Write columns in the format that the name tells; lists are possible but in CSV."""
    names = list(columns)
    rows = list(zip(*columns.values(), strict=True))
    name = path.name.removesuffix(".gz")
    opened = gzip.open if path.suffix == ".gz" else open
    if name.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
    elif name.endswith(".csv"):
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        with opened(path, "wt", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(dict(zip(names, row, strict=True))) + "\n")
    return path


def by_label(values, names=LABELS):
    return {name: [row[at] for row in values] for at, name in enumerate(names)}


ANY_FORMAT = pytest.mark.parametrize(
    "name", ["in.csv", "in.csv.gz", "in.jsonl", "in.jsonl.gz", "in.parquet"]
)
LIST_FORMATS = pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet"])


@ANY_FORMAT
def test_probabilities_come_in_by_text(tmp_path, name):
    file = write_table(tmp_path / name, {"text": TEXTS, **by_label(PROBABILITIES)})
    done = import_answers(tmp_path / "box", file, labels=LABELS, kind="probabilities")
    assert (done.rows, done.stored, done.repeated, done.different) == (4, 4, 0, 0)
    cache = LogitCache.open(tmp_path / "box")
    logits = cache.lookup(row_keys(TEXTS[::-1])).logits
    assert softmax(logits) == pytest.approx(np.array(PROBABILITIES[::-1]), abs=1e-6)
    assert logits.mean(axis=1) == pytest.approx(0, abs=1e-5)
    assert cache.manifest.kind == "probabilities"
    assert cache.manifest.labels == LABELS


@ANY_FORMAT
def test_logits_are_stored_as_they_are(tmp_path, name):
    file = write_table(tmp_path / name, {"text": texts(5), **by_label(answers(5).tolist())})
    import_answers(tmp_path / "box", file, labels=LABELS, kind="logits")
    cache = LogitCache.open(tmp_path / "box")
    assert (cache.lookup(keys(5)).logits == answers(5)).all()
    assert cache.manifest.kind == "logits"


@LIST_FORMATS
@pytest.mark.parametrize("column", [None, "scores"])
def test_a_list_column_holds_the_labels_in_order(tmp_path, name, column):
    columns = {"text": TEXTS, column or "probabilities": PROBABILITIES}
    file = write_table(tmp_path / name, columns)
    import_answers(tmp_path / "box", file, labels=LABELS, kind="probabilities", columns=column)
    logits = LogitCache.open(tmp_path / "box").lookup(row_keys(TEXTS)).logits
    assert softmax(logits) == pytest.approx(np.array(PROBABILITIES), abs=1e-6)


@ANY_FORMAT
def test_columns_and_texts_can_have_other_names_and_order(tmp_path, name):
    values = by_label(PROBABILITIES, ("p0", "p1", "p2"))
    columns = dict(reversed({"first": TEXTS, "second": TEXTS[::-1], **values}.items()))
    import_answers(
        tmp_path / "box",
        write_table(tmp_path / name, {"note": ["x"] * 4, **columns}),
        labels=LABELS,
        kind="probabilities",
        columns=("p0", "p1", "p2"),
        text="first",
        text_b="second",
    )
    cache = LogitCache.open(tmp_path / "box")
    logits = cache.lookup(row_keys(TEXTS, TEXTS[::-1])).logits
    assert softmax(logits) == pytest.approx(np.array(PROBABILITIES), abs=1e-6)
    assert cache.missing(row_keys(TEXTS)).all()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("lists", [pa.list_(pa.float32(), 3), pa.large_list(pa.float64())])
def test_parquet_columns_of_other_types(tmp_path, kind, lists):
    table = pa.table({"text": pa.array(TEXTS).cast(kind), "logits": pa.array(PROBABILITIES, lists)})
    pq.write_table(table, tmp_path / "in.parquet")
    import_answers(tmp_path / "box", tmp_path / "in.parquet", labels=LABELS, kind="logits")
    logits = LogitCache.open(tmp_path / "box").lookup(row_keys(TEXTS)).logits
    assert logits == pytest.approx(np.array(PROBABILITIES), abs=1e-6)


@ANY_FORMAT
@pytest.mark.parametrize(
    "wrong", [[0.7, 0.2, 0.2], [1.2, -0.1, -0.1], [2.5, -1.0, 0.1], [0.4, 0.3, 0.2985]]
)
def test_what_is_no_probability_is_refused_with_its_place(tmp_path, name, wrong):
    values = by_label([*PROBABILITIES[:2], wrong, PROBABILITIES[3]])
    file = write_table(tmp_path / name, {"text": texts(4), **values})
    with pytest.raises(DataError) as error:
        import_answers(tmp_path / "box", file, labels=LABELS, kind="probabilities")
    place = {"in.csv": "line 4", "in.jsonl": "line 3", "in.parquet": "row 3"}
    assert f"{file}, {place[name.removesuffix('.gz')]}:" in str(error.value)


def test_sums_may_be_rounded(tmp_path):
    rounded = [[0.333, 0.333, 0.333], [0.3333, 0.3333, 0.3333]]
    file = write_table(tmp_path / "in.csv", {"text": texts(2), **by_label(rounded)})
    import_answers(tmp_path / "box", file, labels=LABELS, kind="probabilities")
    assert LogitCache.open(tmp_path / "box").lookup(keys(2)).logits == pytest.approx(0)


@ANY_FORMAT
def test_the_first_answer_to_a_text_is_kept(tmp_path, name, capsys):
    values = np.concatenate([answers(4), answers(4), answers(2) + 1])
    columns = {"text": [*texts(4), *texts(4), *texts(2)], **by_label(values.tolist())}
    file = write_table(tmp_path / name, columns)
    done = import_answers(tmp_path / "box", file, labels=LABELS, kind="logits")
    assert (done.rows, done.stored, done.repeated, done.different) == (10, 4, 6, 2)
    assert done.examples == ("text 0", "text 1")
    assert "text 1" in capsys.readouterr().err
    assert (LogitCache.open(tmp_path / "box").lookup(keys(4)).logits == answers(4)).all()


@ANY_FORMAT
def test_an_import_goes_on_where_it_stopped(tmp_path, name, monkeypatch):
    monkeypatch.setattr(exchange, "IMPORT_ROWS", 10)
    monkeypatch.setattr(exchange, "EXPORT_ROWS", 16)
    whole = by_label(answers(45).tolist())
    broken = {**whole, "refund": [*whole["refund"][:32], float("nan"), *whole["refund"][33:]]}
    bad = write_table(tmp_path / f"bad-{name}", {"text": texts(45), **broken})
    with pytest.raises(DataError, match="not a finite number"):
        import_answers(tmp_path / "box", bad, labels=LABELS, kind="logits")
    assert LogitCache.open(tmp_path / "box").stats().rows == 30
    good = write_table(tmp_path / name, {"text": texts(45), **whole})
    done = import_answers(tmp_path / "box", good, labels=LABELS, kind="logits")
    assert (done.stored, done.repeated, done.different) == (15, 30, 0)
    cache = LogitCache.open(tmp_path / "box")
    assert (cache.lookup(keys(45)).logits == answers(45)).all()
    assert cache.stats().shards == 5


def test_further_files_of_the_same_teacher_add_up(tmp_path):
    for part in range(2):
        columns = {"text": texts(5, part * 5), **by_label(answers(5, start=part * 5).tolist())}
        file = write_table(tmp_path / f"{part}.csv", columns)
        import_answers(tmp_path / "box", file, labels=LABELS, kind="logits", name="gpt")
        (tmp_path / "box").rename(tmp_path / "moved")
        (tmp_path / "moved").rename(tmp_path / "box")
    assert (LogitCache.open(tmp_path / "box").lookup(keys(10)).logits == answers(10)).all()
    arguments = {"labels": LABELS, "kind": "logits"}
    assert import_answers(tmp_path / "box", file, **arguments).repeated == 5
    with pytest.raises(CacheError, match="teacher"):
        import_answers(tmp_path / "box", file, **arguments, name="another")
    with pytest.raises(CacheError, match="kind"):
        import_answers(tmp_path / "box", file, labels=LABELS, kind="probabilities")


def test_a_models_cache_takes_no_imports(tmp_path, filled):
    cache = filled(3)
    file = write_table(tmp_path / "in.csv", {"text": texts(5), **by_label(answers(5).tolist())})
    with pytest.raises(CacheError, match="folder of its own"):
        import_answers(cache.folder, file, labels=LABELS, kind="logits")


REFUSED = {
    "missing column": ("in.csv", b"text,billing,delivery\nx,1,2\n", "'refund' is lacking"),
    "misspelt column": ("in.csv", b"text,billing,delivery,refunds\n", "did you mean 'refunds'"),
    "column twice": ("in.csv", b"text,text,billing,delivery,refund\n", "'text' stands twice"),
    "ragged": ("in.csv", b"text,billing,delivery,refund\na,1,2,3\nb,c,1,2,3\n", "line 3: 5 col"),
    "no number": ("in.csv", b"text,billing,delivery,refund\na,1,2,3\nb,1,,3\n", "line 3"),
    "nan": ("in.csv", b"text,billing,delivery,refund\na,1,nan,3\n", "line 2"),
    "open quote": ("in.csv", b'text,billing,delivery,refund\na,1,2,3\n"b,1,2,3\n', "line 3"),
    "no rows": ("in.csv", b"text,billing,delivery,refund\n", "holds no rows"),
    "empty": ("in.csv", b"", "holds no rows"),
    "not UTF-8": ("in.csv", b"text,billing,delivery,refund\n\xe9,1,2,3\n", "not UTF-8"),
    "no JSON": ("in.jsonl", b'{"text": "a", "logits": [1, 2, 3]}\n{"text"\n', "line 2: not JSON"),
    "no object": ("in.jsonl", b"[1, 2]\n", "line 1"),
    "key gone": ("in.jsonl", b'{"text": "a", "logits": [1, 2, 3]}\n\n{"text": "b"}\n', "line 3"),
    "short list": ("in.jsonl", b'{"text": "a", "logits": [1, 2]}\n', "line 1: 'logits' holds 2"),
    "text as number": ("in.jsonl", b'{"text": "a", "logits": ["1", 2, 3]}\n', "line 1"),
    "true": ("in.jsonl", b'{"text": "a", "logits": [true, 2, 3]}\n', "line 1"),
    "not a list": ("in.jsonl", b'{"text": "a", "logits": 1}\n', "line 1"),
    "number as text": ("in.jsonl", b'{"text": 5, "logits": [1, 2, 3]}\n', "line 1"),
    "half character": ("in.jsonl", b'{"text": "\\ud800", "logits": [1, 2, 3]}\n', "surrogate"),
    "too large": ("in.jsonl", b'{"text": "a", "logits": [1e300, 2, 3]}\n', "line 1"),
    "no gzip": ("in.csv.gz", b"text,billing,delivery,refund\n", "gzip"),
    "half gzip": (
        "in.csv.gz",
        gzip.compress(b"text,billing,delivery,refund\n" + b"a,1,2,3\n" * 9)[:-9],
        "gzip",
    ),
    "no Parquet": ("in.parquet", b"PAR1 and so on", "Parquet"),
    "unknown format": ("in.xlsx", b"", "must end in .csv"),
    "zipped Parquet": ("in.parquet.gz", b"", "must end in .csv"),
}


@pytest.mark.parametrize(("name", "content", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_unusable_files_are_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        import_answers(tmp_path / "box", tmp_path / name, labels=LABELS, kind="logits")
    assert told in str(error.value)
    assert str(tmp_path / name) in str(error.value)


REFUSED_TABLES = {
    "texts": ({"text": [1], "logits": [[1.0, 2.0, 3.0]]}, "not texts"),
    "lists": ({"text": ["a"], "logits": [1.0]}, "not lists"),
    "numbers": ({"text": ["a"], "logits": [["1", "2", "3"]]}, "not numbers"),
    "length": ({"text": ["a", "b"], "logits": [[1.0, 2.0, 3.0], [1.0]]}, "row 2"),
    "null": ({"text": ["a", "b"], "logits": [[1.0, 2.0, 3.0], None]}, "row 2"),
    "null inside": ({"text": ["a", "b"], "logits": [[1.0] * 3, [1.0, None, 2.0]]}, "row 2"),
    "nan": ({"text": ["a", "b"], "logits": [[1.0] * 3, [1.0, float("nan"), 2.0]]}, "row 2"),
}


@pytest.mark.parametrize(("columns", "told"), REFUSED_TABLES.values(), ids=REFUSED_TABLES.keys())
def test_unusable_tables_are_refused(tmp_path, columns, told):
    file = write_table(tmp_path / "in.parquet", columns)
    with pytest.raises(DataError) as error:
        import_answers(tmp_path / "box", file, labels=LABELS, kind="logits")
    assert told in str(error.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": ("a", "a", "b")},
        {"labels": ("billing",)},
        {"columns": ("billing", "delivery")},
        {"columns": "billing"},
        {"text": "sentence"},
    ],
)
def test_impossible_requests_are_refused(tmp_path, changed):
    file = write_table(tmp_path / "in.csv", {"text": texts(2), **by_label(answers(2).tolist())})
    with pytest.raises(DataError):
        import_answers(tmp_path / "box", file, **{"labels": LABELS, "kind": "logits", **changed})
    assert not (tmp_path / "box").exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        import_answers(tmp_path / "box", tmp_path / "no.csv", labels=LABELS, kind="logits")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "in.csv").touch()
    monkeypatch.setattr("bert_kd.logits.answer_files.open_text", refuse)
    with pytest.raises(DataError, match=r"in.csv cannot be read \(Permission denied\)"):
        import_answers(tmp_path / "box", tmp_path / "in.csv", labels=LABELS, kind="logits")


@pytest.fixture
def split(tmp_path):
    """A prepared split of texts 0 to 9 in another order; the last has no gold label."""

    def write(pair=False, count=10):
        order = [int(row) for row in np.random.default_rng(3).permutation(count)]
        first = [f"text {row}" for row in order]
        second = [f"other, {row}" for row in order] if pair else None
        rows = Rows(
            keys=row_keys(first, second),
            texts=first,
            texts_b=second,
            labels=np.array([row % 3 for row in order[:-1]] + [-1]),
            views=np.zeros(count, dtype=np.int16),
        )
        write_rows(tmp_path / "data" / "train.parquet", [rows])
        return tmp_path / "data" / "train.parquet", order

    return write


def read_table(path):
    """Return the columns of an exported file."""
    name = path.name.removesuffix(".gz")
    opened = gzip.open if path.suffix == ".gz" else open
    if name.endswith(".parquet"):
        return pq.read_table(path).to_pydict()
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if name.endswith(".csv") else [*map(json.loads, file)]
    return {column: [row[column] for row in rows] for column in rows[0]}


@pytest.mark.parametrize(
    "name", ["out.csv", "out.csv.gz", "out.jsonl", "out.jsonl.gz", "out.parquet"]
)
def test_export_gives_rows_in_order_with_their_answers(tmp_path, filled, split, name, monkeypatch):
    monkeypatch.setattr(exchange, "EXPORT_ROWS", 4)
    cache = filled(6, 6)
    path, order = split()
    done = export_answers(cache.folder, path, tmp_path / name, labels=LABELS)
    assert (done.rows, done.skipped) == (10, 0)
    table = read_table(tmp_path / name)
    assert list(table) == ["text", "label", *LABELS]
    assert table["text"] == [f"text {row}" for row in order]
    assert table["label"] == [LABELS[row % 3] for row in order[:-1]] + [
        "" if ".csv" in name else None
    ]
    found = np.array([table[label] for label in LABELS], dtype=np.float32).T
    assert (found == answers(12)[order]).all()


@ANY_FORMAT
@pytest.mark.parametrize("values", ["logits", "probabilities"])
def test_an_export_can_be_imported(tmp_path, folder, manifest, split, name, values):
    path, order = split(pair=True)
    cache = LogitCache.create(folder, manifest)
    logits = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    pair_keys = row_keys([f"text {n}" for n in range(10)], [f"other, {n}" for n in range(10)])
    cache.append(pair_keys, logits)
    export_answers(folder, path, tmp_path / name, labels=LABELS, values=values)
    import_answers(tmp_path / "box", tmp_path / name, labels=LABELS, kind=values, text_b="text_b")
    found = LogitCache.open(tmp_path / "box").lookup(pair_keys).logits
    if values == "logits":
        assert (found == logits).all()
    assert softmax(found) == pytest.approx(softmax(logits), abs=1e-6)


def test_export_puts_columns_in_the_datas_order(tmp_path, filled, split):
    cache, (path, order) = filled(10), split()
    export_answers(cache.folder, path, tmp_path / "out.parquet", labels=LABELS[::-1])
    table = read_table(tmp_path / "out.parquet")
    assert list(table)[2:] == list(LABELS[::-1])
    assert table["billing"] == answers(10)[order, 0].tolist()
    assert table["label"][0] == LABELS[::-1][order[0] % 3]
    with pytest.raises(CacheError, match="'refund' is none"):
        export_answers(
            cache.folder, path, tmp_path / "out.csv", labels=("billing", "delivery", "other")
        )


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_rows_without_an_answer_are_counted_and_refused_or_left_out(tmp_path, filled, split, name):
    cache, (path, order) = filled(7), split()
    output = tmp_path / name
    with pytest.raises(CacheError, match=r"3 of 10 rows .*cache-logits"):
        export_answers(cache.folder, path, output, labels=LABELS)
    assert not output.exists()
    done = export_answers(cache.folder, path, output, labels=LABELS, missing="skip")
    assert (done.rows, done.skipped) == (7, 3)
    assert read_table(output)["text"] == [f"text {row}" for row in order if row < 7]


def test_an_export_of_nothing_is_refused(tmp_path, folder, manifest, split):
    LogitCache.create(folder, manifest)
    path, _ = split()
    with pytest.raises(CacheError, match="10 of 10 rows"):
        export_answers(folder, path, tmp_path / "out.csv", labels=LABELS, missing="skip")
    assert not (tmp_path / "out.csv").exists()


def test_export_refuses_names_that_clash_and_unknown_formats(tmp_path, folder, manifest, split):
    path, _ = split()
    LogitCache.create(folder, manifest)
    with pytest.raises(DataError, match="must end in"):
        export_answers(folder, path, tmp_path / "out.txt", labels=LABELS)
    other = tmp_path / "other"
    LogitCache.create(other, type(manifest)("t", ("text", "b", "c")))
    with pytest.raises(DataError, match="'text'"):
        export_answers(other, path, tmp_path / "out.csv", labels=("text", "b", "c"))
