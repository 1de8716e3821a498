"""The compiled kernel answers as plain numpy does, on every instruction set and in every precision,
whatever else is in the call and whoever else is calling.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from reference import Reference

from bert_kd.runtime.native.fold import fold

_native = pytest.importorskip("bert_kd.runtime.native._native")

VOCABULARY = 40
PRECISIONS = ("fp32", "bf16", "int8")
# Of a logit, beside the same file read by numpy. In bf16 and int8 a state on the edge between two
# numbers may go either way.
TOLERANCES = {"fp32": 2e-5, "bf16": 2e-2, "int8": 4e-2}
STATE_TOLERANCES = {"fp32": 2e-6, "bf16": 5e-4, "int8": 5e-4}
SHAPES = [
    {},
    {"hidden": 1, "dense": 0},
    {"hidden": 40, "classes": 70, "dense": 0},
    {"hidden": 48, "dense": 100, "pooling": "final"},
    {"pooling": "mean"},
    {"pooling": "attention", "hidden": 20},
    {"layers": 2},
    {"layers": 3, "pooling": "attention"},
    {"pair": True},
    {"pair": True, "match": True, "layers": 2, "pooling": "mean"},
]


def make_weights(shape, seed=0):
    """The state dict of a student with random weights, without torch."""
    random = np.random.default_rng(seed)
    hidden, embedding = shape["hidden"], shape["embedding"]
    pooled = 2 * hidden * (4 if shape["pair"] else 1)
    sizes = {"embedding.weight": (VOCABULARY, embedding)}
    if shape["match"]:
        sizes["match"] = (embedding,)
    for layer, side in product(range(shape["layers"]), ("rightward", "leftward")):
        name = f"layers.{layer}.{side}"
        sizes[f"{name}.weight_ih_l0"] = (4 * hidden, 2 * hidden if layer else embedding)
        sizes[f"{name}.weight_hh_l0"] = (4 * hidden, hidden)
        sizes[f"{name}.bias_ih_l0"] = sizes[f"{name}.bias_hh_l0"] = (4 * hidden,)
    if shape["pooling"] == "attention":
        sizes |= {"attention.weight": (1, 2 * hidden), "attention.bias": (1,)}
    if shape["dense"]:
        sizes |= {"dense.weight": (shape["dense"], pooled), "dense.bias": (shape["dense"],)}
    sizes["output.weight"] = (shape["classes"], shape["dense"] or pooled)
    sizes["output.bias"] = (shape["classes"],)
    return {
        name: random.uniform(-1, 1, size).astype(np.float32) / np.float32(size[-1] ** 0.3)
        for name, size in sizes.items()
    }


def make_file(path, precision="fp32", table="fp16", change=None, **sizes):
    """Write the file of a student of these sizes and return its path."""
    shape = {
        "vocabulary": VOCABULARY,
        "embedding": 12,
        "hidden": 24,
        "layers": 1,
        "pooling": "max",
        "dense": 10,
        "classes": 3,
        "pair": False,
        "match": False,
        "dropout": 0.0,
        **sizes,
    }
    weights = make_weights(shape)
    if change is not None:
        change(weights)
    labels = [str(label) for label in range(shape["classes"])]
    fold(weights, shape, labels, path / "native.safetensors", precision, table)
    return path / "native.safetensors"


def make_texts(count, longest=40, seed=1):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return [random.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def flat(texts):
    """The arguments that stand for texts: ids and offsets."""
    offsets = np.cumsum([0] + [len(text) for text in texts], dtype=np.int64)
    return np.concatenate([np.empty(0, np.int32), *texts]), offsets


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_logits_are_those_of_plain_numpy(tmp_path, sizes, precision):
    path = make_file(tmp_path, precision, **sizes)
    sides = [make_texts(31, seed=side) for side in range(2 if sizes.get("pair") else 1)]
    reference = Reference(path)
    expected = np.array([reference.logits(*row) for row in zip(*sides, strict=True)])
    arguments = [part for side in sides for part in flat(side)]
    for instruction_set in _native.instruction_sets():
        model = _native.Model(str(path), instruction_set)
        assert (model.precision, model.instruction_set) == (precision, instruction_set)
        logits = model.logits(*arguments)
        np.testing.assert_allclose(
            logits, expected, atol=TOLERANCES[precision], err_msg=instruction_set
        )
        np.testing.assert_array_equal(model.logits(*arguments, threads=3), logits)


def test_a_table_of_bytes_is_read_with_its_scales(tmp_path):
    path = make_file(tmp_path, table="int8", pair=True, match=True)
    texts, others = make_texts(20), make_texts(20, seed=2)
    reference = Reference(path)
    expected = [reference.logits(*row) for row in zip(texts, others, strict=True)]
    for instruction_set in _native.instruction_sets():
        logits = _native.Model(str(path), instruction_set).logits(*flat(texts), *flat(others))
        np.testing.assert_allclose(logits, expected, atol=2e-5, err_msg=instruction_set)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gates_are_those_of_the_formula_at_any_sum(tmp_path, precision):
    """One step from zero: the state is sigmoid(o) · tanh(sigmoid(i) · tanh(g))."""
    hidden = 16
    sums = np.concatenate([np.linspace(-12, 12, VOCABULARY - 4), [-6e4, 6e4, 0, 1e-4]])

    def change(weights):
        for name, values in weights.items():
            if name.startswith("layers.") or name == "output.bias":
                values[...] = 0
        weights["embedding.weight"][...] = sums[:, None]
        for side in ("rightward", "leftward"):
            # Gates i and o open by different shares of the token's sum, g by itself.
            inputs = weights[f"layers.0.{side}.weight_ih_l0"].reshape(4, hidden, -1)
            inputs[:, :, 0] = np.linspace(-1, 1, hidden) * np.array([[0.5], [1], [1], [0.7]])
        weights["output.weight"][...] = np.eye(2 * hidden)  # the logits are the states

    path = make_file(
        tmp_path, precision, change=change, hidden=hidden, pooling="final", dense=0, classes=32
    )
    rows = Reference(path).tensors["table"][:, 0].astype(np.float64)  # [vocabulary, 4, hidden]
    opening = np.exp(-np.logaddexp(0, -rows))  # sigmoid, without overflow
    expected = opening[:, 3] * np.tanh(opening[:, 0] * np.tanh(rows[:, 2]))
    arguments = flat([np.array([token], np.int32) for token in range(VOCABULARY)])
    for instruction_set in _native.instruction_sets():
        states = _native.Model(str(path), instruction_set).logits(*arguments)
        np.testing.assert_allclose(
            states,
            np.concatenate([expected, expected], axis=1),
            atol=STATE_TOLERANCES[precision],
            err_msg=instruction_set,
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_long_memory_stays(tmp_path, precision):
    """A cell whose forget gate is all but open holds its value over thousands of tokens."""

    def change(weights):
        for name, values in weights.items():
            if name.startswith(("layers.", "output.")):
                values[...] = 0
        weights["embedding.weight"][...] = 0
        weights["embedding.weight"][1] = 1
        for side in ("rightward", "leftward"):
            gates = weights[f"layers.0.{side}.weight_ih_l0"].reshape(4, 16, -1)
            gates[0, :, 0] = gates[2, :, 0] = 20  # token 1 writes …
            weights[f"layers.0.{side}.bias_ih_l0"].reshape(4, 16)[1] = 12  # … all tokens keep …
            weights[f"layers.0.{side}.bias_ih_l0"].reshape(4, 16)[3] = 12  # … and show
        weights["output.weight"][...] = np.eye(32)

    path = make_file(
        tmp_path, precision, change=change, hidden=16, pooling="final", dense=0, classes=32
    )
    text = np.zeros(5000, np.int32)
    text[0] = 1
    expected = Reference(path).logits(text)[:16]
    assert expected.min() > 0.7
    for instruction_set in _native.instruction_sets():
        model = _native.Model(str(path), instruction_set)
        np.testing.assert_allclose(model.logits(*flat([text]))[0, :16], expected, atol=2e-2)


@pytest.mark.parametrize("sizes", [{}, {"layers": 2, "pooling": "attention"}], ids=str)
def test_a_text_of_thousands_of_tokens_changes_no_other(tmp_path, sizes):
    model = _native.Model(str(make_file(tmp_path, **sizes)))
    texts = make_texts(30)
    texts[7] = np.resize(np.concatenate(texts), 9000).astype(np.int32)
    together = model.logits(*flat(texts), threads=2)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(model.logits(*flat([text]))[0], together[row], atol=1e-5)


def test_more_texts_than_go_through_at_once_keep_their_order(tmp_path):
    model = _native.Model(str(make_file(tmp_path, "int8")))
    texts = make_texts(10_000, longest=6)
    logits = model.logits(*flat(texts), threads=2)
    for row in (0, 1, 4095, 4096, 9_999):
        np.testing.assert_allclose(logits[row], model.logits(*flat([texts[row]]))[0], atol=1e-5)
    assert model.logits(*flat([])).shape == (0, 3)


def test_callers_at_the_same_time_get_the_answers_they_get_alone(tmp_path):
    model = _native.Model(str(make_file(tmp_path, "int8", layers=2, pooling="attention")))
    calls = [flat(make_texts(5 + at, seed=at)) for at in range(24)]
    alone = [model.logits(*call) for call in calls]
    with ThreadPoolExecutor(8) as callers:
        for _ in range(10):
            answers = callers.map(lambda call: model.logits(*call, threads=3), calls)
            for answer, expected in zip(answers, alone, strict=True):
                np.testing.assert_array_equal(answer, expected)


FORK = """
import os, sys, warnings
import numpy as np
from bert_kd.runtime.native import _native

model = _native.Model(sys.argv[1])
call = np.arange(40, dtype=np.int32), np.array([0, 10, 40])
before = model.logits(*call, threads=4)
warnings.simplefilter("ignore")  # of forks where there are threads: this is one
child = os.fork()
same = (model.logits(*call, threads=4) == before).all()
if child == 0:
    os._exit(0 if same else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not same)
"""


def test_a_forked_child_answers(tmp_path):
    command = [sys.executable, "-c", FORK, str(make_file(tmp_path, "int8"))]
    subprocess.run(command, check=True, timeout=60)


DAEMONS = """
import sys, threading, time
import numpy as np
from bert_kd.runtime.native import _native

model = _native.Model(sys.argv[1])
call = np.zeros(20_000, dtype=np.int32), np.arange(0, 20_001, 10)
begun = threading.Barrier(5)

def call_on():
    model.logits(*call, threads=2)
    begun.wait()
    while True:
        model.logits(*call, threads=2)

for _ in range(4):
    threading.Thread(target=call_on, daemon=True).start()
begun.wait()
time.sleep(0.05)
"""


def test_python_ends_while_threads_are_still_answering(tmp_path):
    command = [sys.executable, "-c", DAEMONS, str(make_file(tmp_path, "int8"))]
    subprocess.run(command, check=True, timeout=60)


COMMA = """
import locale, sys
from bert_kd.runtime.native import _native

locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
assert locale.localeconv()["decimal_point"] == ","
_native.Model(sys.argv[1])
"""


@pytest.mark.skipif(not shutil.which("localedef"), reason="makes a locale of its own")
def test_a_locale_that_writes_a_decimal_comma_changes_no_file(tmp_path):
    command = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("the sources of locales are not installed")
    command = [sys.executable, "-c", COMMA, str(make_file(tmp_path, dropout=0.3))]
    subprocess.run(command, check=True, env=os.environ | {"LOCPATH": str(tmp_path)})


def test_threads_without_work_sleep(tmp_path):
    model = _native.Model(str(make_file(tmp_path)))
    model.logits(*flat(make_texts(4)), threads=4)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05


def test_what_does_not_fit_the_student_is_refused(tmp_path):
    model = _native.Model(str(make_file(tmp_path)))
    ids, offsets = flat(make_texts(3))
    with pytest.raises(ValueError, match="token ids outside 0 to 39"):
        model.logits(ids + VOCABULARY, offsets)
    with pytest.raises(ValueError, match="token ids outside 0 to 39"):
        model.logits(-ids - 1, offsets)
    with pytest.raises(ValueError, match="text 1 begins at token 2 and ends before token 2"):
        model.logits(ids, np.array([0, 2, 2]))
    with pytest.raises(ValueError, match="text 1 begins at token 2 and ends before token 1"):
        model.logits(ids, np.array([0, 2, 1]))
    for outside in ([-1, 2], [0, len(ids) + 1], [0, 1 << 40, 2]):
        with pytest.raises(ValueError):
            model.logits(ids, np.array(outside))
    ends = np.iinfo(np.int64)  # whose difference overflows to one token
    for outside in ([ends.max, ends.min], [0, ends.min, 2], [5, ends.min, 2]):
        with pytest.raises(ValueError, match="text 0 begins at token"):
            model.logits(ids, np.array(outside))
    for wide in (ids + np.int64(2**32), ids + 0.5):
        with pytest.raises(TypeError):
            model.logits(wide, offsets)
    with pytest.raises(ValueError, match="one dimension"):
        model.logits(ids[None], offsets)
    with pytest.raises(ValueError, match="threads is less than 1"):
        model.logits(ids, offsets, threads=0)
    with pytest.raises(ValueError, match="reads one text; two were given"):
        model.logits(ids, offsets, ids, offsets)
    with pytest.raises(ValueError, match="belong together"):
        model.logits(ids, offsets, ids)
    with pytest.raises(ValueError, match=r"no instruction set mmx: use .*portable"):
        _native.Model(str(tmp_path / "native.safetensors"), "mmx")

    pairs = _native.Model(str(make_file(tmp_path, pair=True)))
    with pytest.raises(ValueError, match="compares two texts; one was given"):
        pairs.logits(ids, offsets)
    with pytest.raises(ValueError, match="3 texts stand beside 2 second texts"):
        pairs.logits(ids, offsets, ids, offsets[:3])


def test_the_peak_is_measured_in_every_precision():
    assert all(_native.measure_peak(precision, 0.01) > 0 for precision in PRECISIONS)
    with pytest.raises(ValueError, match="use fp32, bf16 or int8"):
        _native.measure_peak("int4")


def test_reading_is_measured_in_every_precision():
    assert all(_native.measure_reading(one, 1000, 0.01) > 0 for one in PRECISIONS)
    for bytes in (0, 2**31):
        with pytest.raises(ValueError, match="bytes must be"):
            _native.measure_reading("int8", bytes)
