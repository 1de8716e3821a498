"""The inference benchmark from texts to the document, with models of a handful of units."""

from __future__ import annotations

import inference
import inference_make
import inference_systems
import numpy as np
import pytest
import speed_docs
import speed_runs
from inference_systems import Spec

from bert_kd.runtime.native import engine as native
from bert_kd.store import write_json

SMALL = {"layers": 1, "hidden": 16, "heads": 2, "inner": 32}
TEXTS = ["where is my parcel", "refund", "the lid of the pan broke and I want another one"] * 2


@pytest.fixture(scope="module")
def bundled() -> speed_runs.Labelled:
    found = speed_runs.read_split(speed_runs.HELPDESK, "train")
    return speed_runs.Labelled(found.texts[:64], found.labels[:64])


@pytest.fixture(scope="module")
def berts(tmp_path_factory, tiny_bert):
    """A BERT in torch and ONNX Runtime, fp32 and int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_make, "SHAPES", {"BERT-base": SMALL})
        folder = tmp_path_factory.mktemp("berts") / "BERT-base"
        return inference_make.make_bert("BERT-base", folder, str(tiny_bert), 3)


@pytest.fixture(scope="module")
def students(tmp_path_factory, tiny_bert, bundled):
    folder = tmp_path_factory.mktemp("students")
    return inference_make.make_student(8, folder, str(tiny_bert), bundled, TEXTS)


def test_a_bert_answers_the_same_in_every_runtime(berts):
    torch_answers, *others = (
        inference_systems.open_system(spec, 1)(TEXTS) for spec in berts.values()
    )
    assert torch_answers.shape == (6, 3)
    np.testing.assert_allclose(torch_answers.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(torch_answers[:3], torch_answers[3:], atol=1e-6)
    np.testing.assert_allclose(torch_answers, others[0], atol=1e-5)
    np.testing.assert_allclose(torch_answers, others[1], atol=0.05)


def test_a_student_answers_the_same_in_every_runtime(students):
    names = list(students)
    assert names[0] == "H = 8, torch" and "H = 8, ONNX Runtime int8" in names
    assert ("H = 8, native int8" in names) == (native.missing() is None)
    answers = [inference_systems.open_system(spec, 1)(TEXTS) for spec in students.values()]
    for found in answers[1:]:
        np.testing.assert_allclose(found, answers[0], atol=1e-2)


def test_a_student_is_taken_out_of_its_bundle(students, tmp_path):
    bundle = students["H = 8, ONNX Runtime fp32"].path
    taken = inference_make.take_student(bundle, tmp_path / "taken", TEXTS)
    assert list(taken) == list(students)
    mine = inference_systems.open_system(taken["H = 8, torch"], 1)(TEXTS)
    theirs = inference_systems.open_system(students["H = 8, torch"], 1)(TEXTS)
    np.testing.assert_array_equal(mine, theirs)


def test_what_is_made_is_made_once(students, tiny_bert, bundled, monkeypatch):
    monkeypatch.setattr(inference_make, "save_student", lambda *given: pytest.fail("made again"))
    monkeypatch.setattr(inference_make, "export_bundle", lambda *given: pytest.fail("made again"))
    folder = students["H = 8, torch"].path.parent
    assert inference_make.make_student(8, folder, str(tiny_bert), bundled, TEXTS) == students


def test_a_spec_survives_its_json(tmp_path):
    spec = Spec("native", tmp_path / "a b")
    assert Spec.from_json(spec.to_json()) == spec


def test_long_texts_are_joined():
    assert inference.joined(["a", "b", "c", "d", "e"], 2) == ["a b", "c d", "e"]


def test_serving_tells_memory_and_time(students):
    told = inference_systems.serve_once(students["H = 8, ONNX Runtime fp32"], TEXTS)
    assert told["ready_seconds"] > 0 and told["open_seconds"] > 0
    assert told["resident_bytes"] is None or told["resident_bytes"] > 1e6


@pytest.mark.slow
def test_it_runs_to_the_document(berts, students, tiny_bert, tmp_path, monkeypatch):
    native_ones = {name: spec for name, spec in students.items() if "native" in name}
    monkeypatch.setattr(inference, "make_systems", lambda *given: berts | students)
    whole = inference.measure_processes
    monkeypatch.setattr(
        inference,
        "measure_processes",
        lambda specs, texts, rounds: whole(dict(list(native_ones.items())[:1]), texts, 1),
    )
    monkeypatch.setattr(inference, "FITTED_ROWS", 200)
    few = ["--set", "helpdesk", "--model", str(tiny_bert), "--rounds", "1", "--minutes", "0.01"]
    few += ["--single-texts", "2", "--bulk-texts", "16", "--threads", "1"]
    *_, found = inference.measure(inference.parse(few))
    rows = found["rows"]
    for name in found["config"]["systems"]:
        assert speed_runs.value_of(rows, name, "short.threads1.texts_per_second") > 0
        assert speed_runs.value_of(rows, name, "long.threads1.latency_p50_us") > 0
    if native_ones:
        assert speed_runs.value_of(rows, "H = 8, native int8", "share_of_peak") > 0
        assert speed_runs.value_of(rows, "tokenizers", "H = 8.tokenizing_us") > 0
        faster = speed_runs.value_of(rows, "H = 8, native int8", "short.threads1.times_bulk")
        assert faster is not None
    write_json(tmp_path / "inference.json", found)
    monkeypatch.setattr(
        speed_docs,
        "GOALS",
        {"BERT-base, torch": {"H = 8": (2.0, 1e9)}, "nothing": {"H = 8": (1, 1)}},
    )
    speed_docs.write_docs(tmp_path, tmp_path / "docs" / "speed.md")
    page = (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "### Short texts, 1 thread\n" in page
    if native_ones:
        assert "| H = 8 against BERT-base, torch |" in page and "| no |" in page
    assert "BERT-base, torch" in (tmp_path / "docs" / "speed" / "inference.svg").read_text()
