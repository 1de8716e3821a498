"""The native engine answers as torch does, alone and in company, from any thread and process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_students import TEXTS, WORDS, make_bundle, needs_native

from bert_kd.config import ExportConfig
from bert_kd.data.batches import encode
from bert_kd.errors import BundleError
from bert_kd.runtime.native.engine import NativeEngine, usable_cores
from bert_kd.runtime.predictor import load
from bert_kd.student.model import load_student

pytestmark = needs_native

ODD = ["don’ſt", "\u0378", "\u212a", "İstanbul", "e\u0301", "नमस्ते", "🏳️\u200d🌈", "a\u200bb", "\x00"]
"""Some of which the compiled tokenizer hands back (a long s, an unassigned code point)."""
SHAPES = [
    {},
    {"hidden": 33, "layers": 2, "pooling": "mean"},
    {"hidden": 16, "pooling": "attention", "dense": 0},
    {"pair": True, "match": True, "pooling": "final"},
]


def odd_texts(count, seed=0):
    chance = random.Random(seed)
    choices = 10 * WORDS + ODD
    return [" ".join(chance.choices(choices, k=chance.randrange(40))) for _ in range(count)]


def torch_logits(bundle, texts, texts_b=None):
    student = load_student(bundle.parent / "student")
    sides = [encode(student.tokenizer, side) for side in (texts, texts_b) if side is not None]
    arrays = [array for side in sides for array in side.padded(np.arange(len(texts)))]
    with torch.inference_mode():
        return student.model(*map(torch.from_numpy, arrays)).logits.numpy()


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.05), ("int8", 0.1)]
)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_answers_are_torchs(tmp_path, sizes, precision, tolerance):
    bundle = make_bundle(tmp_path, ExportConfig(precision=precision), **sizes)
    texts = odd_texts(60)
    texts_b = odd_texts(60, seed=1) if sizes.get("pair") else None
    logits = load(bundle, "native").logits(texts, texts_b)
    np.testing.assert_allclose(logits, torch_logits(bundle, texts, texts_b), atol=tolerance)


@pytest.mark.parametrize("folder", ["bundle", "pair_bundle"])
def test_texts_that_are_handed_back_are_answered_in_their_place(folder, request):
    bundle = request.getfixturevalue(folder)
    engine = load(bundle, "native").engine
    texts, texts_b = odd_texts(200), odd_texts(200, seed=1) if folder == "pair_bundle" else None
    _, _, others = engine._compiled.encode(texts)
    assert 0 < len(others) < len(texts)
    np.testing.assert_allclose(
        engine.logits(texts, texts_b), engine._answer_by_ids(texts, texts_b), atol=1e-5
    )


def test_a_tokenizer_that_is_not_compiled_is_answered_all_the_same(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(state))
    predictor = load(folder, "native", verify=False)
    assert predictor.engine._compiled is None
    expected = load(folder, "onnx", verify=False).logits(TEXTS)
    np.testing.assert_allclose(predictor.logits(TEXTS), expected, atol=0.1)


def test_all_instruction_sets_answer_alike(bundle):
    from bert_kd.runtime.native import _native

    facts = load(bundle, "native").bundle
    arguments = (
        bundle / "native.safetensors",
        bundle / "tokenizer.json",
        facts.shape,
        facts.labels,
        1,
    )
    texts = odd_texts(100)
    answers = [
        NativeEngine(*arguments, instruction_set=name).logits(texts)
        for name in _native.instruction_sets()
    ]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=0.02)


@pytest.mark.parametrize("folder", ["bundle", "pair_bundle"])
def test_threads_change_no_answer(folder, request):
    bundle = request.getfixturevalue(folder)
    texts, texts_b = odd_texts(700), odd_texts(700, seed=1) if folder == "pair_bundle" else None
    alone, together = (load(bundle, "native", threads=count) for count in (1, 2))
    np.testing.assert_allclose(
        together.logits(texts, texts_b), alone.logits(texts, texts_b), atol=1e-6
    )


def test_many_callers_get_their_own_answers(bundle):
    predictor = load(bundle, "native", threads=2)
    groups = [odd_texts(1 + 37 * (seed % 4), seed) for seed in range(24)]
    alone = [predictor.logits(group) for group in groups]
    barrier = threading.Barrier(8)

    def call(turn):
        if turn < 8:
            barrier.wait()  # all begin at once
        return predictor.logits(groups[turn % len(groups)])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(10 * len(groups))))
    for turn, answer in enumerate(answers):
        np.testing.assert_allclose(answer, alone[turn % len(groups)], atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_answers(bundle):
    predictor = load(bundle, "native", threads=2)
    texts = odd_texts(600)
    expected = predictor.logits(texts)  # the pool of threads has begun
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [
        context.Process(target=lambda: answers.put(predictor.logits(texts))) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        np.testing.assert_allclose(answers.get(), expected, atol=1e-6)
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    np.testing.assert_allclose(predictor.logits(texts), expected, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_is_mapped_so_that_processes_share_it(bundle):
    predictor = load(bundle, "native")
    with open("/proc/self/maps", encoding="utf-8") as lines:
        mapped = [line.split() for line in lines if str(bundle / "native.safetensors") in line]
    assert mapped and all("w" not in line[1] for line in mapped)
    assert predictor.logits(["a film"]).shape == (1, 3)


def test_a_list_that_changes_meanwhile_is_no_danger(bundle):
    predictor = load(bundle, "native", threads=2)
    texts = odd_texts(2000)
    done = threading.Event()

    def change():
        while not done.is_set():
            texts[:] = texts[::-1]

    other = threading.Thread(target=change)
    other.start()
    try:
        for _ in range(5):
            assert predictor.logits(texts).shape == (len(texts), 3)
    finally:
        done.set()
        other.join()


def test_texts_that_are_handed_back_are_those_of_the_call(bundle):
    class Emptied(list):
        """A list that another thread empties once it has been read."""

        def __iter__(self):
            yield from list(super().__iter__())
            self.clear()

    engine = load(bundle, "native").engine
    texts = odd_texts(200)
    np.testing.assert_array_equal(engine.logits(Emptied(texts)), engine.logits(texts))


def test_no_json_is_read_until_a_text_is_handed_back(bundle, tmp_path, monkeypatch):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    texts = odd_texts(200)
    expected = load(folder, "native").logits(texts)

    def refuse(*arguments):
        raise AssertionError("the tokenizer.json is read")

    with monkeypatch.context() as patch:
        patch.setattr("bert_kd.runtime.native.engine.compile_tokenizer", refuse)
        patch.setattr("bert_kd.runtime.native.engine.read_tokenizer", refuse)
        engine = load(folder, "native").engine
        assert engine.logits(["a film"]).shape == (1, 3)
        with pytest.raises(AssertionError, match="is read"):
            engine.logits(texts)
    # Another bundle has taken the folder since: the texts are those of the one that was loaded.
    (folder / "tokenizer.json").write_text("{}")
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: engine.logits(texts), range(8)):
            np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_a_tokenizer_that_has_changed_since_is_the_one_that_is_used(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["truncation"]["max_length"] = 2
    path.write_text(json.dumps(state))
    predictor = load(folder, "native", verify=False)
    assert predictor.engine._compiled is not None
    cut, whole = predictor.logits(["so good", "so good and so great"])
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_table_with_what_is_no_number_gives_no_answer(tmp_path, precision, value):
    from bert_kd.runtime.native import _native

    bundle = make_bundle(tmp_path, ExportConfig(precision=precision))
    tokenizer = bundle / "tokenizer.json"
    path = bundle / "native.safetensors"
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    values = 2 * 4 * 16
    # One gate of one unit, of a word that not every text has.
    at = begin + header["table"]["data_offsets"][0] + 2 * (vocabulary["great"] * values + 3 * 16)
    content[at : at + 2] = np.float16(value).tobytes()
    path.unlink()
    path.write_bytes(content)
    facts = load(bundle, "onnx").bundle
    for instruction_set in _native.instruction_sets():
        engine = NativeEngine(path, tokenizer, facts.shape, facts.labels, 2, instruction_set)
        assert np.isfinite(engine.logits(["so good"])).all()
        for texts in (["so great"], odd_texts(200)):
            with pytest.raises(BundleError, match="values in table that are no numbers"):
                engine.logits(texts)


def test_sizes_that_the_bundle_does_not_name_take_no_memory(bundle, tmp_path, monkeypatch):
    from bert_kd.runtime.native import _native

    facts = load(bundle, "native").bundle
    other = {**facts.shape, "hidden": facts.shape["hidden"] + 1}

    def refuse(*arguments):
        raise AssertionError("the weights are packed")

    files = (bundle / "native.safetensors", bundle / "tokenizer.json")
    with monkeypatch.context() as patch:
        patch.setattr(_native, "Model", refuse)
        with pytest.raises(BundleError, match="another bundle's model"):
            NativeEngine(*files, other, facts.labels)

    def too_large(*arguments):
        raise MemoryError

    monkeypatch.setattr(_native, "Model", too_large)
    with pytest.raises(BundleError, match="needs more memory than there is"):
        NativeEngine(*files, facts.shape, facts.labels)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_a_folder_whose_name_is_no_unicode_is_opened(bundle, tmp_path):
    folder = shutil.copytree(bundle, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert load(folder, "native").logits(["a film"]).shape == (1, 3)


def test_the_cores_that_may_be_used_are_the_default(bundle, monkeypatch):
    assert usable_cores() >= 1
    assert load(bundle, "native").engine._threads == usable_cores()
    assert load(bundle, "native", threads=3).engine._threads == 3
