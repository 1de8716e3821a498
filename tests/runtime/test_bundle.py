"""A bundle that is damaged or foreign is refused in words; nothing crashes."""

from __future__ import annotations

import json
import shutil

import pytest
from small_students import make_bundle

from bert_kd.errors import BundleError
from bert_kd.runtime.bundle import read_bundle
from bert_kd.runtime.predictor import load

FILES = ("model.onnx", "model.safetensors", "tokenizer.json")


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def edit(folder, change):
    facts = json.loads((folder / "bundle.json").read_text())
    change(facts)
    (folder / "bundle.json").write_text(json.dumps(facts))


def test_works_from_another_place(copy):
    assert load(copy)("a film")[0]["label"] in read_bundle(copy).labels


@pytest.mark.parametrize("name", FILES)
def test_missing_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(copy)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is damaged .*SHA-256"):
        load(copy)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 1, 100, -9])
def test_truncated_and_not_verified(copy, name, kept):
    (copy / name).write_bytes((copy / name).read_bytes()[:kept])
    with pytest.raises(BundleError, match=name):
        load(copy, verify=False)


def test_not_verified_when_told_so(copy):
    (copy / "model.safetensors").write_bytes(b"")
    assert load(copy, verify=False)("a film")


def test_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path / "file")
    (tmp_path / "bundle.json").write_text('{"name": "something else"}')
    with pytest.raises(BundleError, match="is not the bundle.json of a bundle"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_facts_that_cannot_be_read(copy, content):
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match="bundle.json"):
        load(copy)


def test_another_format(copy):
    edit(copy, lambda facts: facts.update(format=2))
    with pytest.raises(
        BundleError, match="has format 2, and this version of bert_kd reads format 1"
    ):
        load(copy)


CHANGES = {
    "labels must be": lambda facts: facts.update(labels=["a", "a", "b"]),
    "labels must be two": lambda facts: facts.update(labels=["a"]),
    "labels must be strings": lambda facts: facts.update(labels=[1, 2, 3]),
    "labels is": lambda facts: facts.pop("labels"),
    "2 labels for 3 classes": lambda facts: facts["labels"].pop(),
    "classes is": lambda facts: facts["shape"].update(classes="3"),
    "vocabulary is": lambda facts: facts["shape"].pop("vocabulary"),
    "pair is": lambda facts: facts.update(pair=1),
    "pair is not what": lambda facts: facts.update(pair=True),
    "files must be": lambda facts: facts["files"].update({"../../etc/passwd": "0"}),
    "rows is True": lambda facts: facts["agreement"].update(rows=True),
    "agreement is": lambda facts: facts.pop("agreement"),
    "name is": lambda facts: facts.update(name=None),
}


@pytest.mark.parametrize("message", CHANGES)
def test_facts_that_make_no_sense(copy, message):
    edit(copy, CHANGES[message])
    with pytest.raises(BundleError, match=message):
        load(copy)


@pytest.mark.parametrize("sizes", [{"pair": True}, {"classes": 4}])
def test_the_model_of_another_bundle(copy, tmp_path, sizes):
    other = make_bundle(tmp_path / "other", **sizes)
    shutil.copyfile(other / "model.onnx", copy / "model.onnx")
    with pytest.raises(BundleError, match="another bundle's model"):
        load(copy, verify=False)


def test_the_tokenizer_of_another_bundle(copy):
    edit(copy, lambda facts: facts["shape"].update(vocabulary=3))
    with pytest.raises(BundleError, match="another bundle's tokenizer"):
        load(copy)


def test_labels_in_another_order_than_the_models(copy):
    edit(copy, lambda facts: facts["labels"].reverse())
    with pytest.raises(BundleError, match="was made for the labels"):
        load(copy)
