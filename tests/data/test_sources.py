"""Where the tables of a source are found."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_texts import jsonl, numbered, tsv

from bert_kd.config import DataConfig
from bert_kd.data import sources
from bert_kd.data.origin import source_fingerprint
from bert_kd.data.sources import find_source
from bert_kd.errors import DataError

ROWS = tsv(numbered(4))


def found(source, **settings):
    return find_source(DataConfig(source=str(source), **settings))


def refused(source, **settings):
    with pytest.raises(DataError) as caught:
        found(source, **settings)
    return str(caught.value)


def names(source):
    """Return the file name of each split."""
    return {split: tables[0].name.rpartition("/")[2] for split, tables in source.splits.items()}


@pytest.mark.parametrize(
    "files",
    [
        ("train.tsv", "validation.tsv", "test.tsv"),
        ("train.csv.gz", "dev.jsonl", "test.tsv.gz"),
        ("Train.tsv", "val.csv"),
        ("training.jsonl.gz", "valid.tsv"),
        ("train.tsv",),
    ],
)
def test_files_of_a_folder_are_found_by_split_name(folder, write, files):
    for name in files:
        write(name, ROWS)
    write("README.md", "")
    write("validation_unseen.tsv", ROWS)
    splits = ("train", "validation", "test")
    assert names(found(folder)) == dict(zip(splits, files, strict=False))


def test_shards_of_a_split_are_read_one_after_the_other(folder, write, prepared):
    for number in range(3):
        write(f"train-{number:05}-of-00003.tsv", tsv(numbered(40, prefix=f"shard {number} text")))
    write("test.tsv", tsv(numbered(4, prefix="other")))
    assert [len(tables) for tables in found(folder).splits.values()] == [3, 1]
    done, _ = prepared()
    assert done.rows["train"] + done.rows["validation"] == 120
    (folder / "train-00001-of-00003.tsv").unlink()
    assert "holds 2 of the 3 shards of train" in refused(folder)
    write("train.tsv", ROWS)
    assert "could be train" in refused(folder)


def test_a_hub_name_is_needed():
    assert "write hub:NAME" in refused("hub:")


def test_two_files_for_one_split_are_refused(folder, write):
    write("train.tsv", ROWS)
    write("dev.tsv", ROWS)
    write("validation.csv", ROWS)
    message = refused(folder)
    assert "could be validation: dev.tsv, validation.csv" in message
    assert names(found(folder, validation="dev.tsv"))["validation"] == "dev.tsv"


def test_configured_files_come_first_and_need_no_known_name(folder, write):
    write("train.tsv", ROWS)
    write("big.tsv", ROWS)
    write("held_out.tsv", ROWS)
    source = found(folder, train="big.tsv", test="held_out.tsv")
    assert names(source) == {"train": "big.tsv", "test": "held_out.tsv"}


def test_a_missing_configured_file_is_named_with_the_nearest(folder, write):
    write("train.tsv", ROWS)
    message = refused(folder, validation="train.tvs")
    assert "data.validation = 'train.tvs'" in message and "did you mean 'train.tsv'?" in message


def test_a_folder_without_a_train_file_is_refused(folder, write):
    assert f"no train file in the folder {folder} (it is empty)" in refused(folder)
    write("reviews.csv", ROWS)
    message = refused(folder)
    assert "it holds reviews.csv" in message and "data.train" in message


def test_a_folder_tells_what_it_holds_beside_files(folder, write):
    (folder / "inner").mkdir()
    (folder / "train.csv").symlink_to(folder / "gone.csv")
    assert "(it holds the folder inner, train.csv, which is a dead link)" in refused(folder)
    write("reviews.csv", ROWS)
    assert "(it holds reviews.csv, the folder inner, train.csv, which" in refused(folder)
    for number in range(10):
        write(f"more_{number}.csv", ROWS)
    assert "more_9.csv, …)" in refused(folder)


def test_a_folder_or_file_that_the_system_refuses_is_told_with_the_reason(folder, write, closed):
    path = write("train.tsv", ROWS)
    closed(path)
    with pytest.raises(DataError) as caught:
        source_fingerprint(DataConfig(source=str(folder)))
    assert f"{path} cannot be read (Permission denied): make it readable" in str(caught.value)
    closed(folder)
    assert f"{folder} cannot be read (Permission denied)" in refused(folder)


def test_a_missing_source_is_refused_with_the_nearest(folder, write):
    path = write("reviews.csv", ROWS)
    message = refused(folder / "review.csv")
    assert "there is no such file or folder" in message and f"did you mean '{path}'?" in message


def test_an_unknown_ending_is_refused_unless_the_format_is_given(folder, write):
    path = write("train.txt", ROWS)
    message = refused(path)
    assert "'.txt' names no known format" in message and "data.format" in message
    assert names(found(path, format="tsv")) == {"train": "train.txt"}
    assert names(found(folder, format="tsv")) == {"train": "train.txt"}


def test_a_single_file_is_train_and_others_join_only_by_name(folder, write):
    path = write("train.tsv", ROWS)
    write("test.tsv", ROWS)
    assert names(found(path)) == {"train": "train.tsv"}
    assert names(found(path, test="test.tsv")) == {"train": "train.tsv", "test": "test.tsv"}
    assert "goes with a folder" in refused(path, train="train.tsv")


def test_labels_beside_the_files_name_the_classes(folder, write):
    path = write("train.tsv", ROWS)
    assert found(folder).names is None
    write("labels.json", '{"0": "no", "1": "yes"}')
    assert found(folder).names.names == found(path).names.names == ("no", "yes")
    assert found(folder, label_names=("yes", "no")).names.numbers == {0: 1, 1: 0}


def test_transfer_files_lie_in_the_folder_or_anywhere(folder, write, tmp_path):
    write("train.tsv", ROWS)
    write("pool.tsv", "text\na\n")
    write("transfer.tsv", "text\na\n")
    (tmp_path / "more.jsonl").write_text(jsonl([{"text": "b"}]))
    source = found(folder, transfer=("pool.tsv", str(tmp_path / "more.jsonl")))
    assert [table.name for table in source.transfer] == [
        str(folder / "pool.tsv"),
        str(tmp_path / "more.jsonl"),
    ]
    assert found(folder).transfer == ()
    assert "data.transfer = 'pol.tsv'" in refused(folder, transfer=("pol.tsv",))


def test_a_bundled_set_is_found_in_a_checkout_or_an_installed_package(
    monkeypatch, tmp_path, folder, write
):
    write("train.tsv", ROWS)
    write("transfer.tsv", "text\na\n")
    for top in (tmp_path / "checkout", tmp_path / "package"):
        monkeypatch.setattr(sources, "BUNDLED", (tmp_path / "checkout", tmp_path / "package"))
        (top / "letters").parent.mkdir()
        folder.rename(top / "letters")
        source = found("bundled:letters")
        assert source.splits["train"][0].name == str(top / "letters" / "train.tsv")
        assert [table.name for table in source.transfer] == [str(top / "letters" / "transfer.tsv")]
        (top / "letters").rename(folder)
    message = refused("bundled:leters")
    assert "there is no such set" in message


def test_an_unknown_bundled_set_is_named_with_the_nearest():
    message = refused("bundled:helpdisk")
    assert "did you mean 'helpdesk'?" in message
    assert "bundled: helpdesk" in message


def test_a_parquet_file_that_is_none_is_refused(folder, write):
    path = write("train.parquet", "text,label\n")
    assert f"{path} is not a whole Parquet file" in refused(folder)
    path.unlink()
    write("train.parquet.gz", "x")
    assert "unpack it" in refused(folder)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A folder that `datasets` loads as it does a hub data set, and an empty cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    for split, labels in (("train", [0, 1, 1, 0]), ("validation", [1, 0]), ("test", [-1, -1])):
        made = datasets.Dataset.from_dict(
            {"sentence": [f"{split} {at}" for at in range(len(labels))], "label": labels},
            features=features,
        )
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"hub:{folder}"


def test_a_hub_data_set_gives_its_splits_and_class_names(hub):
    from bert_kd.data.tables import Columns

    source = found(hub, text="sentence")
    assert source.names.names == ("negative", "positive")
    assert {split: tables[0].rows for split, tables in source.splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }
    rows = next(source.splits["train"][0].read(Columns("sentence", label="label")))
    assert rows.texts == ["train 0", "train 1", "train 2", "train 3"]
    assert (rows.labels, rows.lines) == ([0, 1, 1, 0], [1, 2, 3, 4])
    assert source.splits["train"][0].place(3) == f"{hub}, split train, row 3"


def test_hub_splits_are_configured_by_name(hub):
    source = found(hub, train="validation", validation="train")
    assert {split: tables[0].rows for split, tables in source.splits.items()} == {
        "train": 2,
        "validation": 4,
        "test": 2,
    }
    assert "did you mean 'validation'?" in refused(hub, validation="validation_matched")


def test_a_missing_hub_column_is_named(hub):
    from bert_kd.data.tables import Columns

    with pytest.raises(DataError, match=r"split train: there is no column 'text'.*sentence"):
        next(found(hub).splits["train"][0].read(Columns("text", label="label")))


def test_configuration_and_revision_reach_the_hub_and_its_errors_are_told(monkeypatch):
    import datasets

    def failing(name, configuration, revision):
        assert (name, configuration, revision) == ("glue", "sst3", "abc")
        raise ValueError("BuilderConfig 'sst3' not found")

    monkeypatch.setattr(datasets, "load_dataset", failing)
    message = refused("hub:glue", configuration="sst3", revision="abc")
    assert "'hub:glue' cannot be loaded (BuilderConfig 'sst3' not found)" in message
    assert "data.configuration" in message


def test_local_files_do_without_the_datasets_package(folder, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    write("train.tsv", ROWS)
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), folder / "test.parquet")
    assert names(found(folder)) == {"train": "train.tsv", "test": "test.parquet"}
