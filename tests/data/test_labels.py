"""What labels mean, and their order."""

import numpy as np
import pytest
from source_texts import tsv

from bert_kd.data.labels import (
    MOST_CLASSES,
    LabelCodes,
    numbered_names,
    read_names,
    reordered,
)
from bert_kd.errors import DataError


def resolved(own, **splits):
    """Return class names, and the class numbers of each split's labels (or None: no labels)."""
    codes = LabelCodes("label")
    encoded = {
        split: codes.encode(
            split, labels, range(1, len(labels) + 1), lambda line: f"f, line {line}"
        )
        for split, labels in splits.items()
    }
    labels = codes.resolve(own)
    held = {split: codes.check(split, labels) for split in splits}
    return labels.names, {
        split: labels.lookup[rows].tolist() if held[split] else None
        for split, rows in encoded.items()
    }


def refused(own, **splits):
    with pytest.raises(DataError) as caught:
        resolved(own, **splits)
    return str(caught.value)


def test_integers_are_ordered_by_value_and_strings_by_code_point():
    assert resolved(None, train=["10", "9", "-2"])[0] == ("-2", "9", "10")
    assert resolved(None, train=[10, 9, 0])[0] == ("0", "9", "10")
    assert resolved(None, train=["b", "B", "é", "a"])[0] == ("B", "a", "b", "é")


def test_the_order_of_rows_does_not_matter():
    forward = resolved(None, train=["b", "a", "c"])
    backward = resolved(None, train=["c", "a", "b"])
    assert forward[0] == backward[0]
    assert forward[1]["train"] == backward[1]["train"][::-1] == [1, 0, 2]


def test_text_and_integer_labels_with_white_space_mean_the_same_class():
    names, found = resolved(None, train=["1", 0, " 1 ", 1, "0\n"])
    assert names == ("0", "1")
    assert found["train"] == [1, 0, 1, 1, 0]


def test_names_of_the_source_stand_for_their_integers_and_themselves():
    own = numbered_names(["negative", "positive"], "labels.json")
    names, found = resolved(own, train=["0", "positive", "1", "negative"])
    assert names == ("negative", "positive")
    assert found["train"] == [0, 1, 1, 0]


def test_a_labels_file_may_count_from_one(write):
    own = read_names(write("labels.json", '{"2": "sports", "1": "world", "10": "business"}'))
    names, found = resolved(own, train=["1", "10", "2"])
    assert names == ("world", "sports", "business")
    assert found["train"] == [0, 2, 1]


def test_a_labels_file_may_be_a_list(write):
    assert read_names(write("labels.json", '["no", "yes"]')).numbers == {0: 0, 1: 1}


@pytest.mark.parametrize(
    "content", ['{"negative": 0}', "3", "[]", '["a", 1]', '["a", "a"]', '{"0": ""}']
)
def test_a_labels_file_of_another_shape_is_refused(write, content):
    path = write("labels.json", content)
    with pytest.raises(DataError, match=r"labels\.json"):
        read_names(path)


def test_classes_called_by_integers_are_never_positions():
    own = reordered(None, ("1", "2", "3"))
    assert resolved(own, train=[1, 2, 3])[1]["train"] == [0, 1, 2]
    assert "'0' is none of the 3 classes" in refused(own, train=[1, 0])


def test_the_configured_order_keeps_what_integers_mean():
    own = numbered_names(["negative", "positive"], "labels.json")
    names, found = resolved(reordered(own, ("positive", "negative")), train=[0, "positive"])
    assert names == ("positive", "negative")
    assert found["train"] == [1, 0]


def test_configured_names_rename_class_by_class():
    own = numbered_names(["0", "1"], "labels.json", [0, 1])
    names, found = resolved(reordered(own, ("no", "yes")), train=[1, 0])
    assert (names, found["train"]) == (("no", "yes"), [1, 0])
    with pytest.raises(DataError, match="has 3 names.* has 2"):
        reordered(own, ("no", "yes", "maybe"))


def test_an_unknown_label_is_refused_at_its_first_row_with_the_nearest():
    message = refused(None, train=["good", "bad"], validation=["good", "god", "odd", "god"])
    assert "f, line 2: the label 'god' is none of the 2 classes of train" in message
    assert "did you mean 'good'?" in message
    own = numbered_names(["no", "yes"], "labels.json")
    assert "f, line 3: the label '2' is none" in refused(own, train=[0, 1, 2])


def test_a_label_with_a_fraction_is_refused_unless_it_is_a_listed_name():
    assert "f, line 2: the label '1.5' is a number with a fraction" in refused(
        None, train=["1.0a", "1.5", "2"]
    )
    names, found = resolved(numbered_names(["1.5", "2.5"], "x"), train=["2.5", "1.5"])
    assert (names, found["train"]) == (("1.5", "2.5"), [1, 0])


def test_whole_numbers_written_as_floats_are_their_integers():
    names, found = resolved(None, train=["10.0", "9", "9.", " 1.00 "], test=["1", "-1.0"][:1])
    assert names == ("1", "9", "10")
    assert found == {"train": [2, 1, 1, 0], "test": [0]}
    own = numbered_names(["negative", "positive"], "labels.json")
    assert resolved(own, train=["0.0", "1.0", "-0.0"])[1]["train"] == [0, 1, 0]
    one = reordered(None, ("negative", "positive"))
    assert resolved(one, train=["1.0", "2.0"])[1]["train"] == [0, 1]
    names, found = resolved(reordered(None, ("2.0", "1.0")), train=["1.0", "2.0"])
    assert (names, found["train"]) == (("2.0", "1.0"), [1, 0])


def test_a_missing_label_is_told_before_other_faults_of_labels():
    missing = "f, line 3: the label column 'label' is empty or -1 here"
    assert missing in refused(None, train=["0.5", "1", ""])
    assert missing in refused(None, train=["0", "1"], validation=["0", "7", None])
    own = numbered_names(["no", "yes"], "labels.json")
    assert missing in refused(own, train=["0", "odd", "-1.0"])


def test_minus_one_means_no_label_unless_train_has_such_a_class():
    assert resolved(None, train=[0, 1], test=[-1, -1])[1]["test"] is None
    names, found = resolved(None, train=["-1", "1"], test=["-1", "-1"])
    assert (names, found["test"]) == (("-1", "1"), [0, 0])


def test_a_test_split_without_any_label_has_none_and_a_half_labelled_one_is_refused():
    assert resolved(None, train=["a", "b"], test=["", None])[1]["test"] is None
    message = refused(None, train=["a", "b"], test=["a", "", "b"])
    assert "f, line 2: the label column 'label' is empty or -1 here" in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_without_labels_are_refused_in_train_and_validation(split):
    own = numbered_names(["no", "yes"], "labels.json")
    splits = {"train": [0, 1], "validation": [0, 1]} | {split: [-1, -1]}
    assert "f, line 1" in refused(own, **splits)


def test_a_column_of_all_different_values_is_no_label_column():
    codes = LabelCodes("id")
    with pytest.raises(DataError, match="'id' holds over 10,000 different labels"):
        codes.encode("train", list(range(MOST_CLASSES + 1)), range(MOST_CLASSES + 1), str)


def test_codes_are_the_same_from_batch_to_batch():
    codes = LabelCodes("label")
    first = codes.encode("train", ["b", "a"], [1, 2], str)
    second = codes.encode("train", ["a", "b", "c"], [3, 4, 5], str)
    assert np.concatenate([first, second]).tolist() == [0, 1, 1, 0, 2]
    assert codes.places["train"] == {0: "1", 1: "2", 2: "5"}


def test_integers_that_do_not_start_at_0_take_the_names_in_order(write, prepared):
    rows = [(f"text {number}", str(1 + number % 2)) for number in range(40)]
    write("train.tsv", tsv(rows))
    made, splits = prepared(label_names=("negative", "positive"))
    assert made.labels == ("negative", "positive")
    for text, label in zip(splits["train"].texts, splits["train"].labels, strict=True):
        assert label == int(text.split()[1]) % 2


def test_true_and_false_in_any_case_are_one_pair_of_classes():
    names, found = resolved(None, train=["true", "false"], validation=["False", "TRUE", "True"])
    assert names == ("false", "true")
    assert found == {"train": [1, 0], "validation": [0, 1, 1]}
    assert resolved(None, train=["True", "true", "FALSE"])[1]["train"] == [1, 1, 0]
    # Beside another class they are names like any other.
    assert resolved(None, train=["True", "true", "odd"])[0] == ("True", "odd", "true")


def test_given_names_rename_false_and_true_as_they_do_0_and_1():
    own = reordered(None, ("ham", "spam"))
    names, found = resolved(own, train=["true", "false"], test=["True", "0.0", "spam"])
    assert names == ("ham", "spam")
    assert found == {"train": [1, 0], "test": [1, 0, 1]}
    names, found = resolved(reordered(None, ("True", "False")), train=["true", "false", "False"])
    assert (names, found["train"]) == (("True", "False"), [0, 1, 1])
    assert "'false' is none of the 2 classes" in refused(
        numbered_names(["no", "yes"], "labels.json", [1, 2]), train=["true", "false"]
    )


def test_a_class_that_may_be_a_missing_label_is_told_unless_it_is_listed(write, prepared):
    labels = ["NaN", "good", "n/a"]
    write("train.tsv", tsv([(f"text {at}", labels[at % 3]) for at in range(60)]))
    notes = prepared()[0].report["notes"]
    for name in ("NaN", "n/a"):
        told = f"train: the class '{name}' is called as a missing label is written"
        assert sum(note.startswith(told) for note in notes) == 1
    notes = prepared(label_names=labels)[0].report["notes"]
    assert not any("missing label" in note for note in notes)
