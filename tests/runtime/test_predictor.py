"""Answers come in the pipeline's shapes, in order, and do not depend on their company."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_students import ENGINES, TEXTS, WORDS, needs_native

from bert_kd.data.batches import encode
from bert_kd.errors import BundleError, DataError, MissingExtra
from bert_kd.runtime import onnx_engine
from bert_kd.runtime import predictor as module
from bert_kd.runtime.predictor import load
from bert_kd.student.model import load_student

PAIR = {"text": "a film", "text_pair": "very long"}
TOLERANCE = {"native": 0.1, "onnx": 1e-4}
"""Of a logit: int8 and fp32."""


@pytest.fixture(scope="module", params=ENGINES)
def single(bundle, request):
    return load(bundle, request.param, threads=1)


@pytest.fixture(scope="module", params=ENGINES)
def pair(pair_bundle, request):
    return load(pair_bundle, request.param, threads=1)


def random_texts(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, 50))) for _ in range(count)]


def torch_logits(bundle, texts, texts_b=None):
    """Each text answered alone."""
    student = load_student(bundle.parent / "student")
    sides = [encode(student.tokenizer, side) for side in (texts, texts_b) if side is not None]
    with torch.inference_mode():
        return np.concatenate(
            [
                student.model(
                    *(
                        torch.from_numpy(part)
                        for side in sides
                        for part in side.padded(np.asarray([row]))
                    )
                ).logits
                for row in range(len(texts))
            ]
        )


def test_logits_are_torchs_in_the_order_given(single, bundle, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_CHUNK", 64)  # 300 texts are several chunks
    texts = [*TEXTS, *random_texts(300)]
    logits = single.logits(texts)
    assert logits.dtype == np.float32
    assert logits.shape == (307, 3)
    expected = torch_logits(bundle, texts)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE[single.engine.name])
    assert len(np.unique(logits.argmax(-1))) > 1


def test_logits_of_pairs(pair, pair_bundle, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_CHUNK", 16)
    texts, texts_b = random_texts(50), random_texts(50, seed=1)
    expected = torch_logits(pair_bundle, texts, texts_b)
    tolerance = TOLERANCE[pair.engine.name]
    np.testing.assert_allclose(pair.logits(texts, texts_b), expected, atol=tolerance)
    swapped = torch_logits(pair_bundle, texts_b, texts)
    assert np.abs(expected - swapped).max() > 3 * tolerance  # order counts


def test_probabilities(single):
    texts = random_texts(20)
    probabilities = single.probabilities(texts)
    logits = single.logits(texts).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_no_texts(single, pair):
    assert single([]) == [] == pair([])
    assert single([], top_k=None) == []
    assert single.logits([]).shape == (0, 3)
    assert pair.probabilities([], []).shape == (0, 3)


def test_a_text_without_tokens_is_an_unknown_token(single):
    empty, unknown, blank = single.logits(["", "qqqq", " \n"])
    np.testing.assert_array_equal(empty, unknown)
    np.testing.assert_array_equal(empty, blank)


def test_long_texts_are_cut(single):
    # The fixture's tokenizer cuts at 32 tokens.
    same, longer, other = single.logits(["good " * 32, "good " * 10_000, "good " * 31])
    np.testing.assert_array_equal(same, longer)
    assert np.abs(same - other).max() > 0


def test_batches_hold_a_bounded_number_of_tokens(bundle, monkeypatch):
    predictor = load(bundle, "onnx", threads=1)
    honest = predictor.engine._session
    seen = []

    class Watching:
        def run(self, names, feeds):
            seen.append((feeds["ids"].size, int(feeds["lengths"].sum())))
            return honest.run(names, feeds)

    monkeypatch.setattr(predictor.engine, "_session", Watching())
    predictor.logits(random_texts(2000))
    assert max(size for size, _ in seen) <= onnx_engine.TOKENS_PER_BATCH
    assert sum(size for size, _ in seen) < 1.1 * sum(real for _, real in seen)  # little padding


def shape_of(answer):
    """The nesting of an answer: lists with their lengths, dicts with their keys and types."""
    if isinstance(answer, list):
        return [shape_of(item) for item in answer]
    return {key: type(value) for key, value in answer.items()}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
    from transformers import TextClassificationPipeline as Pipeline

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=3,
    )
    return Pipeline(
        model=BertForSequenceClassification(config).eval(),
        tokenizer=BertTokenizer(str(folder / "vocab.txt")),
    )


@pytest.mark.parametrize("arguments", [{}, {"top_k": None}, *({"top_k": k} for k in (1, 2, 9))])
@pytest.mark.parametrize(
    "inputs",
    ["a film", ["a film"], ["a film", "bad"], PAIR, [PAIR], [PAIR, PAIR], {"text": "a"}],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_are_the_pipelines(bundle, pair_bundle, pipeline, engine, inputs, arguments):
    expected = pipeline(inputs, **arguments)
    folder = pair_bundle if "text_pair" in str(inputs) else bundle
    answer = load(folder, engine, threads=1)(inputs, **arguments)
    assert shape_of(answer) == shape_of(expected)


def test_answers_are_the_best_labels_first(single):
    text = "i hated it"
    probabilities = single.probabilities([text])[0]
    ranked = single(text, top_k=None)
    assert [entry["label"] for entry in ranked] == [
        single.labels[at] for at in probabilities.argsort()[::-1]
    ]
    scores = sorted(probabilities.tolist(), reverse=True)
    assert [entry["score"] for entry in ranked] == pytest.approx(scores, abs=1e-6)
    assert single(text) == ranked[:1] == single(text, top_k=1) == single([text])
    beside = single([text, "bad"], top_k=2)[0]
    assert [entry["label"] for entry in beside] == [entry["label"] for entry in ranked[:2]]
    assert beside[0]["score"] == pytest.approx(ranked[0]["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs is a NoneType"),
        (3, "inputs is a int"),
        (b"bytes", "inputs is a bytes"),
        (["a", 3], r"inputs\[1\] is a int"),
        ([["a", "b"]], r"inputs\[0\] is a list"),
        ({"text": 3}, r"inputs\['text'\] is a int"),
        ({"text": "a", "text_pair": 3}, r"inputs\['text_pair'\] is a int"),
        ({"text": "a", "pair": "b"}, r"has the keys \['text', 'pair'\]"),
        ({"text_pair": "b"}, r"has the keys \['text_pair'\]"),
        ({}, "has the keys"),
    ],
)
def test_what_is_no_text_is_refused(single, inputs, message):
    with pytest.raises(TypeError, match=message):
        single(inputs)


def test_lists_of_what_is_no_text_are_refused(single):
    with pytest.raises(TypeError, match="text 1 is a float"):
        single.logits(["a", float("nan")])
    with pytest.raises(TypeError, match="one string"):
        single.logits("a film")
    for odd in (iter(["a"]), None, {"a"}, {"a": 1}, np.array("a"), np.array([["a"]])):
        with pytest.raises(TypeError, match=f"texts is a {type(odd).__name__}: give a list"):
            single.probabilities(odd)
    with pytest.raises(DataError, match="text 2 is not valid Unicode"):
        single(["a", "b", "\ud800"])


@pytest.mark.parametrize(
    ("top_k", "error"), [("2", TypeError), (1.0, TypeError), (True, TypeError), (0, ValueError)]
)
def test_wrong_top_k(single, top_k, error):
    with pytest.raises(error, match="top_k is"):
        single("a", top_k=top_k)


def test_numbers_and_texts_of_numpy(bundle, single):
    assert single("a", top_k=np.int64(1)) == single("a", top_k=1)
    texts = np.array(["a film", "bad"])
    assert np.array_equal(single.logits(texts), single.logits(texts.tolist()))
    assert load(bundle, threads=np.int64(2)).threads == 2


def test_it_goes_to_other_processes(single):
    again = pickle.loads(pickle.dumps(single))
    assert (again.engine.name, again.threads) == (single.engine.name, 1)
    assert again("a film") == single("a film") == copy.deepcopy(single)("a film")


def test_pairs_and_single_texts_are_not_mixed_up(single, pair):
    for wrong in ("a", ["a"], {"text": "a"}):
        with pytest.raises(BundleError, match="compares two texts, and one was given"):
            pair(wrong)
    for wrong in (PAIR, [PAIR]):
        with pytest.raises(BundleError, match="reads single texts, and a pair was given"):
            single(wrong)
    with pytest.raises(BundleError, match="1 of 2 inputs are pairs"):
        pair([PAIR, "a"])
    with pytest.raises(DataError, match="2 texts stand beside 1 second texts"):
        pair.logits(["a", "b"], ["c"])


def test_engines(bundle):
    assert load(bundle, engine="onnx").engine.name == "onnx"
    with pytest.raises(BundleError, match="no engine 'gpu'"):
        load(bundle, engine="gpu")
    for threads in (0, -1, 1025, 2**31, 2**70, 1.5, "2", True):
        with pytest.raises(BundleError, match=f"threads is {threads!r}: give a whole number"):
            load(bundle, threads=threads)
    assert load(bundle, threads=1024)("a film")


def test_onnx_runtime_gets_the_cores_that_may_be_used(bundle, monkeypatch):
    monkeypatch.setattr(onnx_engine, "usable_cores", lambda: 3)
    options = load(bundle, "onnx").engine._session.get_session_options()
    assert options.intra_op_num_threads == 3
    options = load(bundle, "onnx", threads=2).engine._session.get_session_options()
    assert options.intra_op_num_threads == 2


@needs_native
def test_auto_is_native(bundle):
    for engine in ("auto", "native"):
        found = load(bundle, engine=engine).engine
        assert (found.name, found.precision) == ("native", "int8")


def test_without_the_compiled_runtime(bundle, monkeypatch):
    monkeypatch.setattr(module.native, "missing", lambda: "there is none here")
    assert load(bundle).engine.name == "onnx"
    with pytest.raises(BundleError, match="there is none here; or use engine='onnx'"):
        load(bundle, engine="native")


def test_many_threads_get_their_own_answers(single):
    groups = [random_texts(40, seed) for seed in range(16)]
    alone = [single.logits(group) for group in groups]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(single.logits, groups * 3))
    for answer, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_loads_without_torch_and_the_like(bundle, engine):
    code = f"""
import sys
import bert_kd
classify = bert_kd.load({str(bundle)!r}, engine={engine!r})
assert classify("a film")
heavy = {{"torch", "transformers", "datasets", "pydantic", "onnx", "pyarrow", "pandas", "rich"}}
if {engine!r} == "native":
    heavy |= {{"onnxruntime", "tokenizers"}}
found = heavy & {{name.partition(".")[0] for name in sys.modules}}
assert not found, found
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_missing_runtime_is_named_with_its_install_line(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"'onnxruntime'.*pip install 'bert_kd\[runtime\]'"):
        load(bundle, "onnx")


def test_missing_onnx_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "bert_kd.runtime.onnx_graph", raising=False)
    with pytest.raises(MissingExtra, match=r"'onnx'.*pip install 'bert_kd\[runtime\]'"):
        importlib.import_module("bert_kd.runtime.onnx_graph")
