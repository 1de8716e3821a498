"""Export writes a whole bundle or none, and measures it against torch."""

from __future__ import annotations

import json

import pytest
from small_students import LABELS, TEXTS, make_student

from bert_kd.config import ExportConfig
from bert_kd.errors import BundleError, StudentError
from bert_kd.runtime import export
from bert_kd.runtime.bundle import read_bundle, sha256
from bert_kd.runtime.export import export_bundle

CONFIG = ExportConfig()


def test_bundle_holds_the_facts(tmp_path):
    student = make_student(tmp_path / "student", hidden=8, embedding=12, dense=10)
    metrics = {"test": {"accuracy": 0.91, "macro_f1": 0.9}, "validation": {"accuracy": 0.92}}
    training = {"source": "bundled:helpdesk", "teacher": "offline", "rows": 1200}

    bundle = export_bundle(student, tmp_path / "b", TEXTS, None, CONFIG, metrics, training)

    assert bundle == read_bundle(tmp_path / "b")
    assert bundle.name == "small"
    assert bundle.labels == LABELS
    assert bundle.shape["hidden"] == 8
    embedding = bundle.shape["vocabulary"] * 12
    lstm = 2 * 4 * 8 * (12 + 8 + 2)
    assert bundle.parameters_without_embeddings == lstm + (16 * 10 + 10) + (10 * 3 + 3)
    assert bundle.parameters == embedding + bundle.parameters_without_embeddings
    assert bundle.agreement.rows == len(TEXTS)
    assert 0 <= bundle.agreement.largest_difference < 1e-4
    assert bundle.agreement.label_agreement == 1.0
    assert bundle.files == {
        name: sha256(tmp_path / "b" / name)
        for name in ("model.onnx", "model.safetensors", "tokenizer.json")
    }
    assert bundle.bytes == sum((tmp_path / "b" / name).stat().st_size for name in bundle.files)
    assert bundle.metrics == metrics
    assert bundle.training == training
    assert "torch" in bundle.versions
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "README.md",
        "bundle.json",
        "model.onnx",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_card_tells_what_a_stranger_needs(tmp_path):
    student = make_student(tmp_path / "student")
    metrics = {"test": {"accuracy": 0.9125, "macro_f1": 0.9}, "validation": {"accuracy": 0.92}}
    training = {"source": "a | b", "rows": 1200}
    export_bundle(student, tmp_path / "b", TEXTS, None, CONFIG, metrics, training)

    card = (tmp_path / "b" / "README.md").read_text()

    for expected in (
        "`negative`, `neutral`, `positive`",
        "bert_kd.load",
        "bert-kd serve",
        "32 tokens",
    ):
        assert expected in card
    assert "|  | accuracy | macro_f1 |" in card
    assert "| test | 0.9125 | 0.9 |" in card
    assert "| source | a \\| b |" in card


def test_checks_only_as_many_rows_as_configured(tmp_path):
    student = make_student(tmp_path / "student")
    bundle = export_bundle(student, tmp_path / "b", TEXTS, None, ExportConfig(check_rows=2))
    assert bundle.agreement.rows == 2


def test_refuses_a_difference_and_keeps_the_older_bundle(tmp_path, monkeypatch):
    student = make_student(tmp_path / "student")
    export_bundle(student, tmp_path / "b", TEXTS, None, CONFIG)
    before = (tmp_path / "b" / "bundle.json").read_text()
    honest = export.build_model

    def skewed(weights, *rest):
        return honest({**weights, "output.bias": weights["output.bias"] + 0.01}, *rest)

    monkeypatch.setattr(export, "build_model", skewed)
    with pytest.raises(BundleError, match=r"by 0\.01 in a logit, more than export\.tolerance"):
        export_bundle(student, tmp_path / "b", TEXTS, None, CONFIG)
    assert (tmp_path / "b" / "bundle.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "student"]


def test_refuses_not_a_number(tmp_path, monkeypatch):
    student = make_student(tmp_path / "student")
    honest = export.build_model

    def broken(weights, *rest):
        return honest({**weights, "output.bias": weights["output.bias"] * float("nan")}, *rest)

    monkeypatch.setattr(export, "build_model", broken)
    with pytest.raises(BundleError, match="by nan"):
        export_bundle(student, tmp_path / "b", TEXTS, None, CONFIG)


def test_refuses_wrong_check_texts(tmp_path):
    single = make_student(tmp_path / "single")
    pair = make_student(tmp_path / "pair", pair=True)
    with pytest.raises(BundleError, match="no texts to compare"):
        export_bundle(single, tmp_path / "b", [], None, CONFIG)
    with pytest.raises(BundleError, match="reads single texts, and pairs were given"):
        export_bundle(single, tmp_path / "b", TEXTS, TEXTS, CONFIG)
    with pytest.raises(BundleError, match="reads pairs, and single texts were given"):
        export_bundle(pair, tmp_path / "b", TEXTS, None, CONFIG)


def test_refuses_a_tokenizer_larger_than_the_embedding(tmp_path):
    student = make_student(tmp_path / "student", vocabulary=5)
    with pytest.raises(BundleError, match=r"ids up to \d+, and the embedding has 5 rows"):
        export_bundle(student, tmp_path / "b", ["a"], None, CONFIG)


def test_refuses_to_replace_what_is_no_bundle(tmp_path):
    student = make_student(tmp_path / "student")
    with pytest.raises(BundleError, match="no bundle"):
        export_bundle(student, student, TEXTS, None, CONFIG)
    assert (student / "model.safetensors").exists()


def test_missing_student_names_the_stage(tmp_path):
    with pytest.raises(StudentError, match="train-students"):
        export_bundle(tmp_path / "none", tmp_path / "b", TEXTS, None, CONFIG)


def test_facts_are_plain_json(bundle):
    facts = json.loads((bundle / "bundle.json").read_text())
    assert facts["kind"] == "bert_kd bundle"
    assert facts["format"] == 1
    assert "folder" not in facts  # a bundle can be moved
