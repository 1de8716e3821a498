"""Export writes a whole bundle or none, and measures it against torch."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from small_students import LABELS, TEXTS, make_bundle, make_student, needs_native

from bert_kd.config import ExportConfig
from bert_kd.errors import BundleError, StudentError
from bert_kd.runtime import export
from bert_kd.runtime.bundle import read_bundle, verify
from bert_kd.runtime.digests import checksum, checksum_of, sha256
from bert_kd.runtime.export import export_bundle
from bert_kd.runtime.native.engine import NativeEngine, missing
from bert_kd.runtime.predictor import load

CONFIG = ExportConfig()
GOLD = np.asarray([2, 0, -1, 0, 2, 1, 1])
NATIVE = [] if missing() else ["native.safetensors"]


def test_bundle_holds_the_facts(tmp_path):
    student = make_student(tmp_path / "student", hidden=8, embedding=12, dense=10)
    metrics = {"test": {"accuracy": 0.91, "macro_f1": 0.9}, "validation": {"accuracy": 0.92}}
    training = {"source": "bundled:helpdesk", "teacher": "offline", "rows": 1200}

    bundle = export_bundle(
        student, tmp_path / "b", TEXTS, None, CONFIG, metrics, training, check_labels=GOLD
    )

    assert bundle == read_bundle(tmp_path / "b")
    verify(bundle)
    assert bundle.name == "small"
    assert bundle.labels == LABELS
    assert bundle.shape["hidden"] == 8
    embedding = bundle.shape["vocabulary"] * 12
    lstm = 2 * 4 * 8 * (12 + 8 + 2)
    assert bundle.parameters_without_embeddings == lstm + (16 * 10 + 10) + (10 * 3 + 3)
    assert bundle.parameters == embedding + bundle.parameters_without_embeddings
    assert bundle.max_tokens == 32
    onnx = bundle.runtimes["onnx"]
    assert (onnx.precision, onnx.table) == ("fp32", None)
    assert onnx.bytes == (tmp_path / "b" / "model.onnx").stat().st_size
    assert onnx.agreement.rows == len(TEXTS)
    assert 0 <= onnx.agreement.largest_difference < 1e-4
    assert onnx.agreement.label_agreement == 1.0
    assert (onnx.agreement.labelled, onnx.agreement.accuracy_change) == (6, 0.0)
    assert bundle.files == {
        name: sha256(tmp_path / "b" / name)
        for name in (*NATIVE, "model.onnx", "model.safetensors", "tokenizer.json")
    }
    assert bundle.checksums == {name: checksum(tmp_path / "b" / name) for name in bundle.files}
    assert bundle.checksums["model.onnx"] == checksum_of(
        (tmp_path / "b" / "model.onnx").read_bytes()
    )
    assert bundle.bytes == sum((tmp_path / "b" / name).stat().st_size for name in bundle.files)
    assert bundle.metrics == metrics
    assert bundle.training == training
    assert "torch" in bundle.versions
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "README.md",
        "bundle.json",
        "model.onnx",
        "model.safetensors",
        *NATIVE,
        "tokenizer.json",
    ]


@needs_native
def test_bundle_holds_the_facts_of_the_native_model(tmp_path):
    folder = make_bundle(tmp_path, ExportConfig(table="int8"))
    native = read_bundle(folder).runtimes["native"]
    assert (native.precision, native.table) == ("int8", "int8")
    assert native.bytes == (folder / "native.safetensors").stat().st_size
    assert native.table_bytes == 21 * (2 * 4 * 16 + 2 * 4)
    assert native.agreement.rows == len(TEXTS)
    assert 0 < native.agreement.largest_difference < 0.2
    assert 0 < native.agreement.largest_probability_difference < 0.05
    card = (folder / "README.md").read_text()
    assert "| native | int8, int8 table of 0.0 MB | 0.0 MB | 100.00% |" in card
    assert "`native.safetensors` is for bert_kd's own CPU runtime" in card


@needs_native
def test_a_compiled_tokenizer_that_differs_gets_no_native_model(tmp_path, monkeypatch, capsys):
    student = make_student(tmp_path / "student")
    # The last texts of the rows alone: a rare difference.
    monkeypatch.setattr(NativeEngine, "misread", lambda self, texts: [len(texts) - 1])
    bundle = export_bundle(student, tmp_path / "b", TEXTS, None, ExportConfig())
    assert list(bundle.runtimes) == ["onnx"]
    assert "gives other tokens than `tokenizers` to 'The Film'" in " ".join(
        capsys.readouterr().err.split()
    )


@needs_native
def test_the_size_of_the_table_is_said(tmp_path, capsys):
    make_bundle(tmp_path, ExportConfig(precision="bf16"))
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"is native in bf16, \d+\.\d MB, of which 0\.0 MB are the folded", said)


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
    assert {runtime.agreement.rows for runtime in bundle.runtimes.values()} == {2}


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
    assert facts["format"] == 2
    assert "folder" not in facts  # a bundle can be moved


# --- which precision ---------------------------------------------------------------------------


def worse_in(monkeypatch, *precisions):
    """Let the native engine answer wrongly in these precisions."""
    honest = NativeEngine.logits

    def answer(self, texts, texts_b=None):
        logits = honest(self, texts, texts_b)
        return -logits if self.precision in precisions else logits

    monkeypatch.setattr(NativeEngine, "logits", answer)


@needs_native
@pytest.mark.parametrize(
    ("wrong", "taken"), [((), "int8"), (("int8",), "bf16"), (("int8", "bf16"), "fp32")]
)
def test_auto_takes_the_fastest_that_is_good_enough(tmp_path, monkeypatch, capsys, wrong, taken):
    worse_in(monkeypatch, *wrong)
    assert read_bundle(make_bundle(tmp_path)).runtimes["native"].precision == taken
    said = capsys.readouterr().err
    for precision in wrong:
        assert f"small is not taken in {precision}: " in said
    assert said.count("labels differ from torch's, and 1 may") == len(wrong)


@needs_native
def test_auto_without_any_good_precision_is_onnx_alone(tmp_path, monkeypatch, capsys):
    worse_in(monkeypatch, "int8", "bf16", "fp32")
    folder = make_bundle(tmp_path)
    assert "the bundle of small has ONNX alone" in capsys.readouterr().err
    assert set(read_bundle(folder).runtimes) == {"onnx"}
    assert not (folder / "native.safetensors").exists()
    assert load(folder).engine.name == "onnx"


@needs_native
def test_a_named_precision_is_kept_to_or_refused(tmp_path, monkeypatch):
    folder = make_bundle(tmp_path / "a", ExportConfig(precision="bf16"))
    assert read_bundle(folder).runtimes["native"].precision == "bf16"
    worse_in(monkeypatch, "bf16")
    with pytest.raises(BundleError, match=r"in bf16, which export\.precision names .* differ"):
        make_bundle(tmp_path / "b", ExportConfig(precision="bf16"))
    assert not (tmp_path / "b" / "bundle").exists()


def test_without_the_compiled_runtime(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.native, "missing", lambda: "there is none here")
    folder = make_bundle(tmp_path / "a")
    assert "has ONNX alone, as there is none here" in capsys.readouterr().err
    assert set(read_bundle(folder).runtimes) == {"onnx"}
    with pytest.raises(BundleError, match='precision is "int8", and there is none here'):
        make_bundle(tmp_path / "b", ExportConfig(precision="int8"))


@pytest.mark.parametrize("sizes", [{}, {"pair": True, "match": True}, {"layers": 2}], ids=str)
def test_onnx_in_bytes(tmp_path, sizes):
    folder = make_bundle(tmp_path, ExportConfig(onnx="int8"), **sizes)
    onnx = read_bundle(folder).runtimes["onnx"]
    assert onnx.precision == "int8"
    assert 1e-4 < onnx.agreement.largest_difference < 0.5
    assert load(folder, "onnx").engine.precision == "int8"


def test_quantising_sets_up_no_logging(tmp_path, capsys):
    import logging

    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    make_bundle(tmp_path, ExportConfig(onnx="int8"))
    assert (root.level, list(root.handlers)) == before
    assert "WARNING" not in capsys.readouterr().err
