"""Stage 01 as a whole: from files to splits, labels and the report."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_texts import jsonl, numbered, tsv

from bert_kd.config import DataConfig
from bert_kd.data.keys import row_keys
from bert_kd.data.prepare import describe, load_prepared, prepare
from bert_kd.errors import DataError, StageError


def finding(made, kind, split):
    """Return the one finding of this kind and split, or None."""
    found = [
        item for item in made.report["findings"] if (item["kind"], item["split"]) == (kind, split)
    ]
    assert len(found) <= 1
    return found[0] if found else None


def refused(prepared, *given, **settings):
    with pytest.raises(DataError) as caught:
        prepared(*given, **settings)
    return str(caught.value)


def write_splits(write, train=None, validation=None, test=None):
    """Write TSV splits; those that are not given have rows of their own."""
    write("train.tsv", tsv(train if train is not None else numbered(10)))
    write("validation.tsv", tsv(validation or numbered(4, prefix="validation")))
    write("test.tsv", tsv(test or numbered(4, prefix="test")))


def test_given_splits_are_written_whole_in_order_with_keys_and_labels(write, prepared, run):
    write_splits(write)
    write("labels.json", '{"0": "no", "1": "yes"}')
    made, rows = prepared()
    assert made.labels == ("no", "yes")
    assert made.pair is False
    assert made.rows == {"train": 10, "validation": 4, "test": 4}
    assert rows["train"].texts == [f"text {number}" for number in range(10)]
    assert rows["train"].labels.tolist() == [0, 1] * 5
    assert rows["train"].keys.tolist() == row_keys(rows["train"].texts).tolist()
    assert rows["train"].views.tolist() == [0] * 10
    assert made.report["label_counts"]["train"] == {"no": 5, "yes": 5}
    assert made.report["findings"] == [] and made.report["notes"] == []
    assert json.loads(run.labels.read_text()) == {"0": "no", "1": "yes"}
    assert load_prepared(run) == made


def test_every_format_gives_the_same_splits(write, prepared):
    rows = numbered(40, classes=3)
    csv = "".join(f'"{text}";{label}\n' for text, label in [("text", "label"), *rows])
    bare = "".join(f"{text}\t{label}\n" for text, label in rows)
    made = [
        prepared(write(name, content), **settings)[0]
        for name, content, settings in (
            ("a.tsv", tsv(rows), {}),
            ("b.csv.gz", csv, {"delimiter": ";"}),
            ("c.jsonl", jsonl([{"text": text, "label": label} for text, label in rows]), {}),
            ("d.txt", bare, {"format": "tsv", "columns": ("text", "label")}),
        )
    ]
    assert len({tuple(sorted(one.fingerprints.items())) for one in made}) == 1
    assert made[0].labels == ("0", "1", "2")


def test_pairs_are_keyed_by_both_texts(write, prepared):
    pairs = [("same", f"other {number}", number % 2) for number in range(40)]
    write("train.tsv", tsv(pairs, header=("first", "second", "label")))
    made, rows = prepared(text="first", text_b="second")
    assert made.pair
    train = rows["train"]
    assert train.texts_b[0].startswith("other")
    assert train.keys.tolist() == row_keys(train.texts, train.texts_b).tolist()
    assert finding(made, "duplicate", "train") is None


def test_missing_splits_are_cut_stratified_and_reported(write, prepared):
    made, rows = prepared(write("all.tsv", tsv(numbered(200, classes=4))), test_fraction=0.2)
    assert made.rows == {"train": 140, "validation": 20, "test": 40}
    for label in range(4):
        assert [int((rows[split].labels == label).sum()) for split in made.rows] == [35, 5, 10]
    together = [text for split in rows.values() for text in split.texts]
    assert sorted(together) == sorted(text for text, _ in numbered(200))
    assert made.report["notes"] == [
        "validation: cut from train, 10% of each class by hashed key",
        "test: cut from train, 20% of each class by hashed key",
    ]


def test_the_share_that_small_classes_give_to_a_cut_is_told(write, prepared):
    made, _ = prepared(write("all.tsv", tsv(numbered(385, classes=77))))
    assert made.rows == {"train": 231, "validation": 77, "test": 77}
    assert made.report["notes"] == [
        f"{split}: cut from train, 20% by hashed key: whole texts, and at least one of each class "
        "that has enough (10% of each was asked)"
        for split in ("validation", "test")
    ]


def test_only_the_missing_split_is_cut(write, prepared):
    write("train.tsv", tsv(numbered(100)))
    write("test.tsv", tsv(numbered(6, prefix="test")))
    made, rows = prepared()
    assert made.rows == {"train": 90, "validation": 10, "test": 6}
    assert rows["test"].texts == [f"test {number}" for number in range(6)]


def test_a_cut_never_moves(write, prepared):
    rows = numbered(300, classes=3)
    _, first = prepared(write("a.tsv", tsv(rows)))
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    _, second = prepared(write("b.tsv", tsv(shuffled)))
    # Repeats, empty texts and the options that drop rows do not move it either.
    _, third = prepared(write("c.tsv", tsv([*rows, *rows[:50], ("", 0)])), drop_duplicates=True)
    for split in ("validation", "test"):
        assert set(second[split].texts) == set(first[split].texts)
        assert set(third[split].texts) == set(first[split].texts)
    _, grown = prepared(write("d.tsv", tsv([*rows, *numbered(15, prefix="new")])))
    old = {text for text, _ in rows}
    for split in ("validation", "test"):
        assert len((set(grown[split].texts) & old) ^ set(first[split].texts)) <= 4


def test_equal_texts_are_cut_to_one_side(write, prepared):
    _, rows = prepared(write("all.tsv", tsv(numbered(60) * 3)))
    sides = [set(split.texts) for split in rows.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60


def test_empty_texts_leave_train_but_not_validation_and_test(write, prepared, folder):
    empty = [("", 0), ("  \u3000", 1)]
    write_splits(
        write,
        train=numbered(8) + empty,
        validation=[*empty, *numbered(3, prefix="v")],
    )
    made, rows = prepared()
    assert made.rows["train"] == 8 and made.rows["validation"] == 5
    assert rows["validation"].texts[:2] == ["", "  \u3000"]
    found = finding(made, "empty", "train")
    assert (found["rows"], found["dropped"]) == (2, 2)
    assert found["examples"][0]["place"] == f"{folder / 'train.tsv'}, line 10"
    assert finding(made, "empty", "validation")["dropped"] == 0


def test_a_pair_is_empty_only_where_both_texts_are(write, prepared):
    pairs = [(f"a {number}", "", number % 2) for number in range(40)] + [("", " ", 1)]
    made, _ = prepared(
        write("all.tsv", tsv(pairs, header=("text", "text_b", "label"))), text_b="text_b"
    )
    assert sum(made.rows.values()) == 40
    assert finding(made, "empty", "train")["rows"] == 1


def test_duplicates_are_counted_and_dropped_only_when_asked(write, prepared, folder):
    write_splits(write, train=[*numbered(6), ("text 1", 1), ("text 1", 0), ("text 2", 0)])
    made, _ = prepared()
    found = finding(made, "duplicate", "train")
    assert (made.rows["train"], found["rows"], found["dropped"]) == (9, 3, 0)
    assert [example["place"].rpartition(" ")[2] for example in found["examples"]] == [
        "8",
        "9",
        "10",
    ]
    made, rows = prepared(drop_duplicates=True)
    assert finding(made, "duplicate", "train")["dropped"] == 3
    assert rows["train"].texts == [f"text {number}" for number in range(6)]
    assert rows["train"].labels.tolist() == [0, 1] * 3


def test_one_text_with_two_labels_is_reported_with_its_labels(write, prepared):
    write_splits(write, train=[*numbered(6), ("text 1", 0), ("text 1", 1), ("text 2", 0)])
    write("labels.json", '["no", "yes"]')
    found = finding(prepared()[0], "two_labels", "train")
    assert found["rows"] == 3 and "1 text with more than one label" in found["sentence"]
    assert found["examples"][0]["text"] == "text 1"
    assert found["examples"][0]["labels"] == ["no", "yes"]


def test_leaks_are_counted_and_dropped_from_train_only_when_asked(write, prepared):
    write_splits(
        write,
        train=numbered(10) + [("text 3", 1)],
        validation=[("text 3", 1), ("text 5", 0), ("fresh", 0)],
        test=[("text 0", 0), ("new", 1)],
    )
    made, _ = prepared()
    found = finding(made, "leak", "validation")
    assert (found["rows"], found["dropped"]) == (2, 0)
    assert "1 of them with another label" in found["sentence"]
    assert [example["text"] for example in found["examples"]] == ["text 3", "text 5"]
    assert finding(made, "leak", "test")["rows"] == 1
    assert made.rows == {"train": 11, "validation": 3, "test": 2}
    made, rows = prepared(drop_leaks=True)
    assert made.rows == {"train": 7, "validation": 3, "test": 2}
    assert not set(rows["train"].texts) & {"text 0", "text 3", "text 5"}
    assert finding(made, "leak", "validation")["dropped"] == 3


def test_transfer_texts_have_no_label_and_stand_in_no_other_split(write, prepared, folder):
    write_splits(write)
    write("pool.tsv", "text\tlabel\nfresh\tx\ntext 1\ty\n \tx\ntest 0\tz\n")
    write("more.jsonl", jsonl([{"text": "validation 1"}, {"text": "other"}, {"text": "other"}]))
    made, rows = prepared(transfer=("pool.tsv", "more.jsonl"))
    assert rows["transfer"].texts == ["fresh", "other", "other"]
    assert rows["transfer"].labels.tolist() == [-1, -1, -1]
    found = finding(made, "overlap", "transfer")
    assert (found["rows"], found["dropped"]) == (3, 3)
    assert [example["place"] for example in found["examples"]] == [
        f"{folder / 'pool.tsv'}, line 3",
        f"{folder / 'pool.tsv'}, line 5",
        f"{folder / 'more.jsonl'}, line 1",
    ]
    assert finding(made, "empty", "transfer")["dropped"] == 1
    assert finding(made, "duplicate", "transfer")["rows"] == 1
    assert "transfer" not in made.report["label_counts"]


def test_variants_of_a_text_are_leaks_and_overlap_too(write, prepared):
    """Texts that differ in case, width or white space alone; their row keys stay their own."""
    write_splits(
        write,
        train=numbered(10) + [("Text  3", 1)],
        validation=[("TEXT 3", 0), ("fresh", 0), ("other", 1)],
        test=[("ｔext 0 ", 1), ("new", 1)],
    )
    write("pool.tsv", "text\nNEW\nText 5\nFRESH \nmine\nMine\n")
    made, rows = prepared(transfer=("pool.tsv",), transfer_style="as given", drop_leaks=True)
    leak = finding(made, "leak", "validation")
    assert (leak["rows"], leak["dropped"]) == (1, 2)
    assert "1 of them with another label" in leak["sentence"]
    assert finding(made, "leak", "test")["dropped"] == 1
    assert not set(rows["train"].texts) & {"text 0", "text 3", "Text  3"}
    assert rows["validation"].texts[0] == "TEXT 3"
    assert rows["transfer"].texts == ["mine", "Mine"]
    assert finding(made, "overlap", "transfer")["rows"] == 3
    assert finding(made, "duplicate", "transfer")["rows"] == 1
    assert rows["transfer"].keys.tolist() == row_keys(["mine", "Mine"]).tolist()


def test_a_cut_keeps_variants_of_a_text_on_one_side(write, prepared):
    rows = numbered(100)
    variants = [(text.title().replace(" ", "  "), label) for text, label in rows]
    made, splits = prepared(write("all.tsv", tsv(rows + variants)))
    sides = [{" ".join(text.lower().split()) for text in split.texts} for split in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 100
    assert made.rows == {"train": 160, "validation": 20, "test": 20}


def test_transfer_without_a_text_of_its_own_is_refused(write, prepared):
    write_splits(write)
    write("pool.tsv", "text\ntext 1\n")
    assert "no transfer text is left" in refused(prepared, transfer=("pool.tsv",))


@pytest.mark.parametrize("kind", ["no column", "all -1", "all empty"])
def test_a_test_split_without_labels_counts_as_not_given(write, prepared, folder, kind):
    write("train.tsv", tsv(numbered(40)))
    label = {"all -1": "-1", "all empty": ""}.get(kind)
    rows = [("hidden", label), ("also", label)]
    write("test.tsv", "text\nhidden\nalso\n" if label is None else tsv(rows))
    made, splits = prepared()
    assert made.rows["test"] == 4 and "hidden" not in splits["test"].texts
    note = f"test: {folder / 'test.tsv'} holds no labels and is left aside"
    assert made.report["notes"][0].startswith(note)


def test_unknown_labels_of_validation_are_refused_at_their_line(write, prepared, folder):
    rows = [("a", "good"), ("b", "bad"), ("c", "good"), ("d", "bad")]
    write_splits(write, rows, [("e", "good"), ("f", "godo")], [("g", "bad")])
    message = refused(prepared)
    assert f"{folder / 'validation.tsv'}, line 3: the label 'godo'" in message
    assert "did you mean 'good'?" in message


def test_a_single_class_is_refused(write, prepared, folder):
    write_splits(write, [("a", 1), ("b", 1)], [("c", 1)], [("d", 1)])
    message = refused(prepared)
    assert f"{folder / 'train.tsv'}: train holds a single class (1)" in message


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_rows_is_refused(write, prepared, folder, split):
    write_splits(write)
    write(f"{split}.tsv", "text\tlabel\n")
    assert f"{folder / (split + '.tsv')}: there are no rows" in refused(prepared)


def test_a_train_split_without_text_is_refused(write, prepared):
    write_splits(write, train=[("", 0), (" ", 1)])
    assert "no rows with text" in refused(prepared)


def test_too_few_rows_to_cut_from_are_refused(write, prepared):
    message = refused(prepared, write("all.tsv", tsv([("a", 0), ("b", 1)])))
    assert "too few texts to cut a" in message


def test_classes_too_small_to_cut_from_are_named_as_the_reason(write, prepared):
    rows = [*numbered(1000, classes=500), ("", 1), ("TEXT 3", 3)]
    message = refused(prepared, write("all.tsv", tsv(rows)))
    assert (
        "too few texts to cut a validation split from: the largest of 500 classes has 2 different "
        "(1,002 rows in all)" in message
    )
    assert "more rows of each class" in message and "is data.label the right column?" in message


def test_a_class_that_train_lacks_is_told(write, prepared):
    write_splits(write)
    write("labels.json", '["no", "yes", "maybe"]')
    made, _ = prepared()
    assert made.labels == ("no", "yes", "maybe")
    assert "train: no rows of 1 classes: maybe" in made.report["notes"]


def test_lengths_are_counted_in_words_and_characters(write, prepared):
    texts = [" ".join(["word"] * count) for count in range(1, 101)]
    write_splits(write, train=[(text, at % 2) for at, text in enumerate(texts)])
    lengths = prepared()[0].report["lengths"]["train"]
    assert lengths["words"] == {"mean": 50.5, "p95": 95, "max": 100}
    assert lengths["characters"]["max"] == 499


def test_examples_are_at_most_five_and_cut_to_a_readable_length(write, prepared):
    long = "word " * 100
    write_splits(write, train=numbered(4) + [(long, 0)] * 9)
    examples = finding(prepared()[0], "duplicate", "train")["examples"]
    assert len(examples) == 5
    assert all(len(example["text"]) <= 120 for example in examples)


def test_odd_characters_are_kept(write, prepared):
    odd = ["a\x00b", "tab-less \x1f", "e\u0301 and \u00e9", "\u202eright to left", "店 🏠"]
    write_splits(write, train=[(text, at % 2) for at, text in enumerate(odd)])
    assert prepared()[1]["train"].texts == odd


def test_a_refused_source_leaves_what_was_prepared_before(write, prepared, run):
    write_splits(write)
    made, _ = prepared()
    write("test.tsv", "text\tlabel\nragged\n")
    refused(prepared)
    assert load_prepared(run) == made
    left = sorted(path.name for path in run.data.iterdir())
    assert left == [
        "labels.json",
        "prepared.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_a_run_that_stopped_while_writing_counts_as_not_prepared(write, prepared, run, monkeypatch):
    write_splits(write)
    prepared()

    def killed(path, batches):
        raise RuntimeError("killed")

    monkeypatch.setattr("bert_kd.data.prepare.write_rows", killed)
    with pytest.raises(RuntimeError, match="killed"):
        prepared(drop_duplicates=True)
    with pytest.raises(StageError, match="run prepare-data first"):
        load_prepared(run)


def test_a_transfer_split_of_an_earlier_run_does_not_stay(write, prepared, run):
    write_splits(write)
    write("pool.tsv", "text\nfresh\n")
    prepared(transfer=("pool.tsv",))
    assert run.split("transfer").exists()
    made, _ = prepared()
    assert "transfer" not in made.rows and not run.split("transfer").exists()


def test_drafts_of_a_killed_run_are_cleared_away(write, prepared, run):
    write_splits(write)
    (run.data / ".reading").mkdir(parents=True)
    (run.data / ".reading" / "train.parquet").write_text("half a file")
    prepared()
    assert not (run.data / ".reading").exists()


def test_a_hub_data_set_is_prepared_with_its_class_names(folder, prepared, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    columns = {"text": [text for text, _ in numbered(30)], "label": [0, 1] * 15}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    made, rows = prepared(f"hub:{folder}")
    assert made.labels == ("no", "yes")
    assert made.rows == {"train": 22, "validation": 4, "test": 4}
    assert set(rows["train"].labels.tolist()) == {0, 1}
    assert made.report["tables"]["train"] == [f"hub:{folder}, split train"]


def test_the_bundled_set_is_prepared_with_its_transfer_pool(prepared):
    made, rows = prepared("bundled:helpdesk")
    assert len(made.labels) == 8 and list(made.labels) == sorted(made.labels)
    assert list(made.rows) == ["train", "validation", "test", "transfer"]
    assert all(np.all(rows[split].labels >= 0) for split in ("train", "validation", "test"))
    assert set(rows["transfer"].labels.tolist()) == {-1}
    for split in ("validation", "test"):
        assert finding(made, "leak", split) is None


def test_people_are_told_in_a_few_plain_lines(write, prepared, folder, capsys):
    write_splits(write, train=[*numbered(6), ("text 1", 1)])
    made, _ = prepared()
    lines = describe(made)
    assert lines[0] == f"{folder}: train 7, validation 4, test 4 rows"
    assert lines[1] == "2 classes in train: 0 42.9%, 1 57.1%"
    assert lines[2].startswith("train: 1 row repeating an earlier text (kept")
    captured = capsys.readouterr()
    assert captured.out == "" and all(line in captured.err for line in lines)


def test_loading_before_preparing_names_the_stage(run):
    with pytest.raises(StageError, match="run prepare-data first"):
        load_prepared(run)


MEASURED = """
import resource, sys
from pathlib import Path
from bert_kd.config import DataConfig
from bert_kd.data import rows
from bert_kd.data.prepare import prepare
from bert_kd.store import RunFolder
rows.GROUP_BYTES = 4 * 2**20
prepare(DataConfig(source=sys.argv[1]), RunFolder(Path(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(folder, tmp_path):
    peaks = []
    for count in (30_000, 90_000):
        path = folder / f"{count}.csv"
        filler = "some words to make it long " * 40
        with path.open("w") as file:
            file.write("text,label\n")
            for number in range(count):
                file.write(f"{number} {filler},{number % 2}\n")
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, path, tmp_path / f"run-{count}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        peaks.append(int(done.stdout))
    # The texts grow by 65 MB.
    assert peaks[1] - peaks[0] < 20 * 1024, peaks


REAL = os.environ.get("BERT_KD_DATA")


@pytest.mark.skipif(not REAL, reason="BERT_KD_DATA names no folder with the public data sets")
@pytest.mark.parametrize(
    ("name", "settings", "rows", "labels", "findings"),
    [
        (
            "sst2",
            {},
            (67_349, 872, 1_821),
            ("negative", "positive"),
            {("duplicate", "train"): 371, ("two_labels", "train"): 10},
        ),
        (
            "trec",
            {},
            (4_951, 501, 500),
            ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
            {("leak", "test"): 10},
        ),
        (
            "mrpc",
            {"text_b": "text_b"},
            (3_668, 408, 1_725),
            ("not_equivalent", "equivalent"),
            {},
        ),
        (
            "chnsenticorp",
            {},
            (9_600, 1_200, 1_200),
            ("negative", "positive"),
            {("leak", "validation"): 338, ("leak", "test"): 331, ("duplicate", "train"): 1_351},
        ),
    ],
)
def test_public_data_sets_give_their_published_counts(run, name, settings, rows, labels, findings):
    made = prepare(DataConfig(source=str(Path(REAL) / name), **settings), run)
    assert tuple(made.rows.values()) == rows
    assert made.labels == labels
    for (kind, split), count in findings.items():
        assert finding(made, kind, split)["rows"] == count


def test_labels_of_a_table_may_be_floats_or_truth_values(folder, prepared):
    texts = [f"text {number}" for number in range(40)]
    for labels, names in (([0.0, 1.0], ("0", "1")), ([True, False], ("false", "true"))):
        pq.write_table(pa.table({"text": texts, "label": labels * 20}), folder / "train.parquet")
        assert prepared()[0].labels == names
    holes = pa.array([None, *[float(number % 2) for number in range(39)]])
    pq.write_table(pa.table({"text": texts, "label": holes}), folder / "train.parquet")
    assert "train.parquet, row 1: the label column 'label' is empty" in refused(prepared)
