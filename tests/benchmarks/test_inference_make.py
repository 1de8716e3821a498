"""What the inference benchmark makes on disk: made once, and anew from anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import inference_make
import numpy as np
import pytest
from inference_systems import Spec
from small_students import make_bundle
from speed_runs import Labelled

from bert_kd.runtime.bundle import FACTS, WEIGHTS
from bert_kd.store import read_json, write_json

TEXTS = ["where is my parcel", "refund", "the lid of the pan broke", "refund the pan"]
TRAIN = Labelled(TEXTS, np.array([0, 1, 2, 1]))


@pytest.fixture
def exports(monkeypatch):
    """The students that bundles are made of, none of which is exported."""
    seen = []

    def export(name: str, source: Path, folder: Path, check: list[str]) -> dict[str, Spec]:
        assert source.parent == folder
        seen.append(source)
        return {name: Spec("student-torch", source)}

    monkeypatch.setattr(inference_make, "_bundles", export)
    return seen


def test_the_place_goes_by_packages_and_code(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "export.py").write_text("FORMAT = 1\n")
    monkeypatch.setattr(inference_make, "CODE", (str(tmp_path / "code"),))
    place = inference_make.place_of(tmp_path, "a", [1])
    assert place.parent == tmp_path
    assert inference_make.place_of(tmp_path, "a", [1]) == place
    assert inference_make.place_of(tmp_path, "a", [2]) != place
    with monkeypatch.context() as patch:
        patch.setattr(inference_make, "versions", lambda: {"torch": "0"})
        assert inference_make.place_of(tmp_path, "a", [1]) != place
    (tmp_path / "code" / "export.py").write_text("FORMAT = 2\n")
    assert inference_make.place_of(tmp_path, "a", [1]) != place


def test_the_code_that_makes_bundles_is_among_it():
    for room in inference_make.CODE:
        assert list((inference_make.REPOSITORY / room).rglob("*.py")), room


def test_another_bundle_is_not_timed_as_the_one_before(exports, tmp_path):
    first = make_bundle(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second"))
    weights = bytearray((second / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (second / WEIGHTS).write_bytes(weights)
    work = tmp_path / "work"
    taken = [inference_make.take_student(bundle, work, TEXTS) for bundle in (first, second, first)]
    assert [len(specs) for specs in taken] == [1, 1, 1]
    places = [spec.path for specs in taken for spec in specs.values()]
    assert places[0] == places[2] != places[1]
    for place, bundle in zip(places, (first, second, first), strict=True):
        assert (place / WEIGHTS).read_bytes() == (bundle / WEIGHTS).read_bytes()
    # Judged by other texts, precisions may be refused that were not.
    inference_make.take_student(first, work, TEXTS[:2])
    told = read_json(first / FACTS)
    write_json(first / FACTS, {**told, "labels": ["x", "y", "z"]})
    inference_make.take_student(first, work, TEXTS)
    assert len(set(exports)) == 4


def test_another_set_or_model_makes_another_student(exports, tiny_bert, tmp_path, monkeypatch):
    saved = []
    save = inference_make.save_student
    monkeypatch.setattr(
        inference_make, "save_student", lambda *given: (saved.append(given), save(*given))
    )
    other = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    words = read_json(other / "tokenizer.json")
    write_json(other / "tokenizer.json", {**words, "truncation": None, "padding": None})
    assert (other / "tokenizer.json").read_bytes() != (tiny_bert / "tokenizer.json").read_bytes()
    asked = [
        (8, tiny_bert, TRAIN),
        (12, tiny_bert, TRAIN),
        (8, other, TRAIN),
        (8, tiny_bert, Labelled([*TEXTS[:-1], "a kettle"], TRAIN.labels)),
        (8, tiny_bert, Labelled(TEXTS, np.array([0, 1, 1, 1]))),
    ]
    for times in (1, 2):
        for hidden, model, train in asked:
            inference_make.make_student(hidden, tmp_path / "work", str(model), train, TEXTS)
        assert len(saved) == len(asked), times
    assert len(set(exports)) == len(asked)


def test_another_model_or_number_of_classes_makes_another_bert(tiny_bert, tmp_path, monkeypatch):
    made = []

    def write(name: str, folder: Path, base: Path, classes: int) -> None:
        made.append((name, classes, inference_make.SHAPES[name]))

    monkeypatch.setattr(inference_make, "_write_bert", write)
    monkeypatch.setattr(inference_make, "SHAPES", {"A": {"layers": 1}, "B": {}})
    for _ in range(2):
        for name, classes in (("A", 2), ("A", 3), ("B", 2)):
            specs = inference_make.make_bert(name, tmp_path, str(tiny_bert), classes)
            assert list(specs)[0] == f"{name}, torch"
    assert len(made) == 3
    monkeypatch.setattr(inference_make, "SHAPES", {"A": {"layers": 2}})
    inference_make.make_bert("A", tmp_path, str(tiny_bert), 2)
    assert len(made) == 4


def test_other_texts_make_another_fasttext(tmp_path, monkeypatch):
    fasttext = pytest.importorskip("fasttext")
    learnt = []

    class Model:
        def __init__(self, file: str, **settings: object) -> None:
            learnt.append(Path(file).read_text(encoding="utf-8"))

        def save_model(self, path: str) -> None:
            Path(path).write_text(learnt[-1], encoding="utf-8")

    monkeypatch.setattr(fasttext, "train_supervised", Model)
    relabelled = Labelled(TEXTS, TRAIN.labels[::-1])
    for train in (TRAIN, relabelled, TRAIN):
        (spec,) = inference_make.make_fasttext(tmp_path, train).values()
        lines = spec.path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == f"__label__{train.labels[0]} {TEXTS[0]}"
    assert len(learnt) == 2
