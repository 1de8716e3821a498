"""A bundle that is damaged or foreign is refused in words; nothing crashes."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from small_students import ENGINES, LABELS, make_bundle, needs_native

from bert_kd.errors import BundleError
from bert_kd.runtime.bundle import ATTEMPTS, read_bundle, read_whole, signature, verify
from bert_kd.runtime.predictor import load

READ = [
    pytest.param("native", "native.safetensors", marks=needs_native),
    pytest.param("native", "tokenizer.json", marks=needs_native),
    ("onnx", "model.onnx"),
    ("onnx", "tokenizer.json"),
]
"""Which engine reads which files."""
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


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("engine", "name"), READ)
@pytest.mark.parametrize("verified", [True, False])
def test_missing_file(copy, engine, name, verified):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(copy, engine, verify=verified)


@pytest.mark.parametrize(("engine", "name"), READ)
def test_one_changed_bit(copy, engine, name):
    change_a_bit(copy / name)
    with pytest.raises(BundleError, match=f"{name} is damaged .*checksum"):
        load(copy, engine)
    edit(copy, lambda facts: facts.pop("checksums"))  # as older bundles are
    with pytest.raises(BundleError, match=f"{name} is damaged .*SHA-256"):
        load(copy, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bundle_without_checksums_is_still_read(copy, engine):
    edit(copy, lambda facts: facts.pop("checksums"))
    assert load(copy, engine)("a film")[0]["label"] in LABELS


@pytest.mark.parametrize(("engine", "name"), READ)
@pytest.mark.parametrize("kept", [0, 1, 100, -9])
def test_truncated_and_not_verified(copy, engine, name, kept):
    (copy / name).write_bytes((copy / name).read_bytes()[:kept])
    with pytest.raises(BundleError, match=name):
        load(copy, engine, verify=False)


def test_only_what_is_read_is_verified(copy):
    (copy / "model.safetensors").unlink()
    assert load(copy)("a film")
    with pytest.raises(BundleError, match=r"model\.safetensors is missing"):
        verify(read_bundle(copy))


@pytest.mark.parametrize("name", FILES)
def test_verify_reads_every_file(copy, name):
    verify(read_bundle(copy))
    change_a_bit(copy / name)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        verify(read_bundle(copy))
    verify(read_bundle(copy), digests=False)


@needs_native
def test_native_alone_is_enough_for_native(copy):
    (copy / "model.onnx").unlink()
    assert load(copy).engine.name == "native"
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        load(copy, "onnx")


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


def test_facts_that_are_no_file(copy):
    (copy / "bundle.json").unlink()
    (copy / "bundle.json").mkdir()
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read \(Is a directory\)"):
        load(copy)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_may_not_be_read(copy, engine, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # whoever runs the tests may read everything
        patch.setattr("pathlib.Path.open", refuse)
        with pytest.raises(BundleError, match=r"cannot be read \(Permission denied\)"):
            load(copy, engine)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_text", refuse)
        with pytest.raises(BundleError, match=r"bundle\.json cannot be read \(Permission denied\)"):
            load(copy, engine)


def test_another_format(copy):
    edit(copy, lambda facts: facts.update(format=3))
    with pytest.raises(
        BundleError, match="has format 3, and this version of bert_kd reads formats 1 and 2"
    ):
        load(copy)


def as_first_format(folder):
    """Make a bundle such as format 1 had it."""

    def change(facts):
        agreement = facts.pop("runtimes")["onnx"]["agreement"]
        kept = ("rows", "largest_difference", "label_agreement")
        facts.update(format=1, agreement={key: agreement[key] for key in kept})
        facts["files"].pop("native.safetensors", None)
        del facts["max_tokens"], facts["checksums"]

    edit(folder, change)
    (folder / "native.safetensors").unlink(missing_ok=True)


def test_the_first_format_is_still_read(copy):
    as_first_format(copy)
    predictor = load(copy)
    assert predictor.engine.name == "onnx"
    assert predictor("a film")[0]["label"] in LABELS
    assert predictor.bundle.max_tokens == 32
    assert predictor.bundle.runtimes["onnx"].agreement.label_agreement == 1.0
    with pytest.raises(BundleError, match="holds no model for the native engine"):
        load(copy, "native")
    edit(copy, lambda facts: facts.pop("agreement"))
    with pytest.raises(BundleError, match="agreement is None"):
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
    "rows is True": lambda facts: facts["runtimes"]["onnx"]["agreement"].update(rows=True),
    "agreement is": lambda facts: facts["runtimes"]["onnx"].pop("agreement"),
    "accuracy_change is": lambda facts: facts["runtimes"]["onnx"]["agreement"].update(
        accuracy_change="0"
    ),
    "precision is 'fp8'": lambda facts: facts["runtimes"]["onnx"].update(precision="fp8"),
    "runtimes must be of native, onnx": lambda facts: facts["runtimes"].update(gpu={}),
    "runtimes is": lambda facts: facts.update(runtimes=["onnx"]),
    "onnx is 3": lambda facts: facts["runtimes"].update(onnx=3),
    "max_tokens is": lambda facts: facts.update(max_tokens="32"),
    "checksums is": lambda facts: facts.update(checksums=["0"]),
    "checksums must be of all files": lambda facts: facts["checksums"].popitem(),
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
        load(copy, "onnx", verify=False)


@needs_native
@pytest.mark.parametrize("sizes", [{"pair": True}, {"classes": 4}, {"hidden": 9}])
def test_the_native_model_of_another_bundle(copy, tmp_path, sizes):
    other = make_bundle(tmp_path / "other", **sizes)
    shutil.copyfile(other / "native.safetensors", copy / "native.safetensors")
    with pytest.raises(BundleError, match="another bundle's model|made for the labels"):
        load(copy, "native", verify=False)


def test_the_tokenizer_of_another_bundle(copy):
    edit(copy, lambda facts: facts["shape"].update(vocabulary=3))
    with pytest.raises(BundleError, match="another bundle's tokenizer"):
        load(copy, "onnx")


def with_tokenizer(folder, change):
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def with_added(state, index):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    state["added_tokens"].append({"id": index, "content": "surplus", **flags})


TOKENIZERS = {
    "gives ids up to 1000 ": lambda state: state["model"]["vocab"].update(surplus=1000),
    "gives ids up to 1000000 ": lambda state: state["model"]["vocab"].update(good=10**6),
    r"gives ids up to \d+ .* another bundle's": lambda state: with_added(state, 10**6),
    r"its vocabulary has no \[UNK\]": lambda state: state["model"]["vocab"].pop("[UNK]"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("message", TOKENIZERS)
def test_a_tokenizer_whose_ids_the_model_does_not_know(copy, engine, message):
    with_tokenizer(copy, TOKENIZERS[message])
    with pytest.raises(BundleError, match=message):
        load(copy, engine, verify=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_labels_in_another_order_than_the_models(copy, engine):
    edit(copy, lambda facts: facts["labels"].reverse())
    with pytest.raises(BundleError, match="was made for the labels"):
        load(copy, engine)


def test_the_signature_tells_a_bundle_from_the_next(copy, tmp_path):
    seen = signature(copy)
    assert seen == signature(copy) != signature(shutil.copytree(copy, tmp_path / "next"))
    os.utime(copy / "tokenizer.json", ns=(1, 1))
    assert signature(copy) != seen
    assert signature(tmp_path / "none") is None


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(copy, tmp_path):
    others = [shutil.copytree(copy, tmp_path / f"next{number}") for number in range(2)]
    read = []

    def replaced():
        read.append(signature(copy))
        if len(read) == 1:  # as it fails where files of two versions meet
            shutil.rmtree(copy)
            others.pop().rename(copy)
            raise BundleError("damaged")
        if len(read) == 2:  # and as it may succeed
            shutil.rmtree(copy)
            others.pop().rename(copy)
        return len(read)

    assert read_whole(copy, replaced) == (3, signature(copy))
    assert len(set(read)) == 3


def test_a_bundle_that_is_away_for_a_moment_is_waited_for(copy, tmp_path):
    copy.rename(tmp_path / "away")
    read = []

    def back_soon():
        read.append(1)
        if len(read) == 2:
            (tmp_path / "away").rename(copy)
            raise FileNotFoundError
        return read_bundle(copy).name

    assert read_whole(copy, back_soon)[0] == read_bundle(copy).name


def test_a_bundle_that_stays_wrong_or_never_stays(copy, tmp_path):
    read = []

    def fail():
        read.append(1)
        raise BundleError("damaged")

    with pytest.raises(BundleError, match="^damaged$"):
        read_whole(copy, fail)
    assert len(read) == 1  # it is as it was: no reason to try again
    with pytest.raises(BundleError, match="not a bundle"):
        load(tmp_path / "none")

    def touch():
        read.append(1)
        os.utime(copy / "bundle.json", ns=(len(read), len(read)))

    read.clear()
    with pytest.raises(BundleError, match="keeps changing"):
        read_whole(copy, touch)
    assert len(read) == ATTEMPTS
