"""The file of the native runtime stands for the student: a plain reader of it answers as torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from reference import Reference, read
from safetensors import safe_open
from small_students import LABELS, make_student

from bert_kd.errors import BundleError
from bert_kd.runtime.native import fold as module
from bert_kd.runtime.native.fold import fold
from bert_kd.student.model import load_student

SHAPES = [
    {},
    {"pooling": "final", "hidden": 16, "dense": 0},
    {"pooling": "mean", "hidden": 5, "classes": 7},
    {"pooling": "attention", "hidden": 24},
    {"layers": 3, "hidden": 9},
    {"layers": 2, "pooling": "final", "pair": True},
    {"pair": True, "match": True, "hidden": 17, "pooling": "mean"},
]
# Of a logit. The half-precision table is what limits fp32.
TOLERANCES = {"fp32": 0.01, "bf16": 0.05, "int8": 0.1}


def weights_of(student):
    return {name: value.numpy() for name, value in student.model.state_dict().items()}


def fold_student(tmp_path, precision="fp32", table="fp16", change=None, **sizes):
    """Fold a small student; returns it, the file and what was said of it."""
    student = load_student(make_student(tmp_path / "student", **sizes))
    weights = weights_of(student)
    if change is not None:
        change(weights)
    path = tmp_path / "native.safetensors"
    folded = fold(weights, vars(student.shape), student.labels, path, precision, table)
    return student, path, folded


def random_ids(student, count, seed=0):
    random = np.random.default_rng(seed)
    return [
        random.integers(0, student.shape.vocabulary, random.integers(1, 40)) for _ in range(count)
    ]


def torch_logits(student, ids, ids_b=None):
    sides = [ids] if ids_b is None else [ids, ids_b]
    with torch.inference_mode():
        arguments = [
            part for side in sides for part in (torch.tensor([side]), torch.tensor([len(side)]))
        ]
        return student.model(*arguments).logits[0].numpy()


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_a_reader_of_the_file_answers_as_torch(tmp_path, precision, sizes):
    student, path, _ = fold_student(tmp_path, precision, **sizes)
    reference = Reference(path)
    others = random_ids(student, 12, seed=1) if sizes.get("pair") else [None] * 12
    for ids, ids_b in zip(random_ids(student, 12), others, strict=True):
        expected = torch_logits(student, ids.tolist(), None if ids_b is None else ids_b.tolist())
        np.testing.assert_allclose(
            reference.logits(ids, ids_b), expected, atol=TOLERANCES[precision]
        )


def test_a_table_of_bytes_costs_half_and_answers_alike(tmp_path):
    _, _, halves = fold_student(tmp_path)
    student, path, whole = fold_student(tmp_path, table="int8")
    rows = student.shape.vocabulary
    assert halves.table_bytes == rows * 2 * 4 * 16 * 2
    assert whole.table_bytes == rows * (2 * 4 * 16 + 2 * 4)
    reference = Reference(path)
    for ids in random_ids(student, 12):
        expected = torch_logits(student, ids.tolist())
        np.testing.assert_allclose(reference.logits(ids), expected, atol=0.2)


@pytest.mark.parametrize("table", ["fp16", "int8"])
def test_the_file_is_safetensors_and_says_what_it_is(tmp_path, table):
    student, path, folded = fold_student(tmp_path, "int8", table, layers=2, hidden=9)
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        metadata = file.metadata()
        assert file.get_slice("table").get_shape() == [student.shape.vocabulary, 2, 4, 16]
        assert file.get_slice("layers.1.leftward.input").get_shape() == [4, 16, 32]
    assert {"table", "layers.0.rightward.recurrent.scale", "layers.1.leftward.bias"} <= names
    assert ("table.scale" in names) == (table == "int8")
    assert "layers.0.rightward.input" not in names  # it is in the table
    assert metadata["format"] == "1"
    assert metadata["precision"] == "int8"
    assert json.loads(metadata["shape"]) == vars(student.shape)
    assert tuple(json.loads(metadata["labels"])) == LABELS
    assert folded.bytes == path.stat().st_size


def test_rows_of_the_table_begin_cache_lines(tmp_path):
    _, path, _ = fold_student(tmp_path, table="int8", classes=7)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length + header["table"]["data_offsets"][0]) % 64 == 0
    assert all(
        (8 + length + entry["data_offsets"][0]) % 4 == 0
        for name, entry in header.items()
        if name != "__metadata__"
    )


def test_padding_is_zero(tmp_path):
    _, path, _ = fold_student(tmp_path, hidden=5, layers=2, pair=True)
    tensors, _ = read(path)
    assert not tensors["table"][..., 5:].any()
    assert not tensors["layers.0.leftward.recurrent"][:, 5:].any()
    assert not tensors["layers.0.leftward.recurrent"][:, :, 5:].any()
    inputs = tensors["layers.1.leftward.input"].reshape(4, 16, 2, 16)
    assert not inputs[:, 5:].any() and not inputs[..., 5:].any() and inputs[:, :5, :, :5].any()
    assert not tensors["dense.weight"].reshape(-1, 8, 16)[..., 5:].any()


@pytest.mark.parametrize("table", ["fp16", "int8"])
def test_the_table_is_the_same_in_parts(tmp_path, monkeypatch, table):
    _, path, _ = fold_student(tmp_path, table=table)
    whole, _ = read(path)
    monkeypatch.setattr(module, "ROWS_PER_CHUNK", 4)
    _, path, _ = fold_student(tmp_path, table=table)
    parts, _ = read(path)
    np.testing.assert_allclose(parts["table"], whole["table"], atol=1e-2)
    assert parts["table"].shape == whole["table"].shape


def test_bf16_rounds_to_the_nearest(tmp_path):
    student, path, _ = fold_student(tmp_path, "bf16")
    stored = read(path)[0]["layers.0.rightward.recurrent"][:, :8, :8]
    exact = student.model.state_dict()["layers.0.rightward.weight_hh_l0"]
    np.testing.assert_array_equal(
        stored.reshape(32, 8), exact.to(torch.bfloat16).to(torch.float32).numpy()
    )


@pytest.mark.parametrize(
    ("precision", "table", "name", "value", "message"),
    [
        ("fp32", "fp16", "output.bias", float("nan"), "output.bias holds values that are no"),
        ("int8", "int8", "embedding.weight", float("inf"), "embedding.weight holds"),
        ("fp32", "fp16", "embedding.weight", 1e6, "table holds values too large for fp16"),
        ("int8", "int8", "embedding.weight", 3e38, "table holds values too large for fp32"),
        ("bf16", "fp16", "layers.0.leftward.weight_hh_l0", 3.4e38, "too large for bf16"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(tmp_path, precision, table, name, value, message):
    def change(weights):
        weights[name] = np.full_like(weights[name], value)

    with pytest.raises(BundleError, match=message):
        fold_student(tmp_path, precision, table, change)
    assert not list(tmp_path.glob("*native*"))


def test_an_unknown_pooling_is_refused(tmp_path):
    student = load_student(make_student(tmp_path / "student"))
    shape = {**vars(student.shape), "pooling": "median"}
    with pytest.raises(BundleError, match="pooling 'median' is not known to the native runtime"):
        fold(weights_of(student), shape, LABELS, tmp_path / "f", "fp32")
