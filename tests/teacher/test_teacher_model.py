"""Finding, loading, saving and fingerprinting a teacher."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from small_teachers import LABELS, settings, small_tokenizer
from transformers import AutoModelForSequenceClassification

from bert_kd.config import TeacherConfig
from bert_kd.errors import StageError, TeacherError
from bert_kd.store import RunFolder
from bert_kd.teacher import model as module
from bert_kd.teacher.answer import answer
from bert_kd.teacher.card import Card, fingerprint_teacher
from bert_kd.teacher.model import load_base, match_labels, open_teacher, save_teacher

TEXTS = ["the film was great", "a dull play", "fine"]


def test_an_unreachable_hub_gives_the_remedy(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(
        TeacherError, match=r"'some-bert' can't be loaded \(We couldn't connect.*offline"
    ):
        load_base(TeacherConfig(model="some-bert"), LABELS)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(TeacherError, match="must hold config.json"):
        load_base(TeacherConfig(model=str(tmp_path)), LABELS)


def test_a_damaged_weights_file_is_a_clear_error(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TeacherError, match="can't be loaded"):
        load_base(settings(copy), LABELS)


def test_the_fresh_head_goes_by_the_seed(base):
    heads = [
        load_base(settings(base, seed=seed), LABELS).model.classifier.weight for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_label_names_go_into_the_model(base):
    config = load_base(settings(base), LABELS).model.config
    assert config.id2label == {0: "bad", 1: "good"} and config.label2id == {"bad": 0, "good": 1}


def test_a_maximum_length_beyond_the_positions_is_refused(base):
    with pytest.raises(TeacherError, match="max_length = 41.*give at most 40"):
        load_base(settings(base, max_length=41), LABELS)


@pytest.mark.parametrize("units", [0, 7])
def test_a_saved_teacher_answers_as_before(base, tmp_path, units):
    teacher = load_base(settings(base, head_units=units), LABELS)
    before = answer(teacher, TEXTS).logits
    save_teacher(tmp_path / "teacher", teacher, Card(LABELS, False, 16, units), {})
    opened = open_teacher(tmp_path / "teacher")
    assert (answer(opened, TEXTS).logits == before).all()
    assert opened.labels == LABELS and opened.max_length == 16 and not opened.model.training


def test_without_head_units_the_folder_is_a_plain_one(base, tmp_path):
    teacher = load_base(settings(base), LABELS)
    save_teacher(tmp_path / "teacher", teacher, Card(LABELS, False, 16), {})
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    assert torch.equal(plain.classifier.weight, teacher.model.classifier.weight)
    assert json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())["truncation"] is None


def test_no_teacher_names_the_stage(tmp_path):
    with pytest.raises(StageError, match="run train-teacher first"):
        open_teacher(tmp_path)


def write_teacher(base, folder, card, **changes):
    teacher = load_base(settings(base, **changes), card.labels)
    save_teacher(folder, teacher, card, {"seconds": 3})
    return folder


def test_fingerprint_goes_by_what_shapes_the_answers(base, tmp_path):
    card = Card(LABELS, False, 16)
    folder = write_teacher(base, tmp_path / "teacher", card)
    found = fingerprint_teacher(folder, "fp32")
    others = {
        "weights": fingerprint_teacher(write_teacher(base, tmp_path / "w", card, seed=5), "fp32"),
        "length": fingerprint_teacher(
            write_teacher(base, tmp_path / "l", Card(LABELS, False, 12)), "fp32"
        ),
        "pair": fingerprint_teacher(
            write_teacher(base, tmp_path / "p", Card(LABELS, True, 16)), "fp32"
        ),
        "order": fingerprint_teacher(
            write_teacher(base, tmp_path / "o", Card(LABELS, False, 16, 0, (1, 0))), "fp32"
        ),
        "labels": fingerprint_teacher(
            write_teacher(base, tmp_path / "n", Card(("no", "yes"), False, 16)), "fp32"
        ),
        "precision": fingerprint_teacher(folder, "bf16"),
    }
    assert len({found, *others.values()}) == 1 + len(others)


def test_fingerprint_does_not_go_by_place_time_or_training(base, tmp_path):
    folder = write_teacher(base, tmp_path / "teacher", Card(LABELS, False, 16))
    found = fingerprint_teacher(folder, "fp32")
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)
    facts = json.loads((copy / "teacher.json").read_text())
    (copy / "teacher.json").write_text(json.dumps({**facts, "seconds": 99}))
    (copy / "stage.json").write_text("{}")
    assert fingerprint_teacher(copy, "fp32") == found


def test_fingerprint_goes_by_the_tokenizer(base, tmp_path):
    folder = write_teacher(base, tmp_path / "teacher", Card(LABELS, False, 16))
    found = fingerprint_teacher(folder, "fp32")
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(["bargain"])
    tokenizer.save_pretrained(folder)
    assert fingerprint_teacher(folder, "fp32") != found


def test_equal_label_order_needs_no_columns():
    assert match_labels(("bad", "good"), LABELS, "m") is None
    assert match_labels(("BAD", "Good "), LABELS, "m") is None


def test_a_permutation_is_found_by_name():
    assert match_labels(("c", "a", "b"), ("a", "b", "c"), "m") == (1, 2, 0)
    assert match_labels(("GOOD", "BAD"), LABELS, "m") == (1, 0)


def test_case_counts_where_it_tells_labels_apart():
    assert match_labels(("a", "A"), ("A", "a"), "m") == (1, 0)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (("LABEL_0", "LABEL_1"), r'teacher.labels = \["bad", "good"\]'),
        (("bad", "god"), r"'good' is not among them \(did you mean 'god'\?\)"),
        (("bad", "good", "other"), "tells 3 classes apart .* the data has 2"),
    ],
)
def test_other_labels_are_refused_with_the_remedy(own, message):
    with pytest.raises(TeacherError, match=message):
        match_labels(own, LABELS, "m")


def test_run_folder_of_a_teacher_is_replaced_as_a_whole(base, tmp_path):
    run = RunFolder(tmp_path)
    run.teacher.mkdir(parents=True)
    (run.teacher / "left over").write_text("")
    write_teacher(base, run.teacher, Card(LABELS, False, 16))
    assert not (run.teacher / "left over").exists()
