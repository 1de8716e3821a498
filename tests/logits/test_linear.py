"""The linear model of n-grams: what it answers, and that no row is answered as it was told."""

from __future__ import annotations

import numpy as np
import pytest

from bert_kd.logits.linear import FOLDS, LinearModel, cross_fit, fit, folds_of, read_as

NAMES = ("red rouge", "green vert", "blue bleu")


def data(count: int, classes: int = 3) -> tuple[list[str], np.ndarray]:
    labels = np.arange(count) % classes
    return [f"{NAMES[label]} number {row}" for row, label in enumerate(labels)], labels


def probabilities(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_tells_classes_by_their_words(classes):
    texts, labels = data(60, classes)
    model = fit(texts, labels, classes)
    assert isinstance(model, LinearModel)
    asked, gold = data(90, classes)
    logits = model.logits(asked)
    assert logits.shape == (90, classes) and logits.dtype == np.float32
    assert (logits.argmax(axis=1) == gold).all()


def test_chinese_is_read_by_characters():
    texts = ["股票大涨", "球队赢球"] * 20
    model = fit(texts, np.array([0, 1] * 20), 2)
    assert model is not None
    assert model.logits(["股市", "足球"]).argmax(axis=1).tolist() == [0, 1]


def test_a_pair_is_read_as_one_text_and_long_ones_are_cut():
    assert read_as(["A,", "b!"], ["c", "D"]) == ["a\nc", "b\nd"]
    assert len(read_as(["x" * 5000], None)[0]) == 2000
    assert len(read_as(["x" * 5000], ["y" * 5000])[0]) == 4001


def test_a_masked_word_is_not_read():
    assert read_as(["a [MASK] 股票 <mask>"], None) == ["a 股 票"]
    assert read_as(["my face mask"], None) == ["my face mask"]


def test_texts_that_it_reads_alike_are_in_one_fold():
    texts = [f"Parcel {row}" for row in range(200)]
    other = [f"parcel, {row} !" for row in range(200)]
    folds = folds_of(read_as(texts, None))
    assert (folds == folds_of(read_as(other, None))).all()
    assert set(folds) == set(range(FOLDS))


def test_a_row_is_answered_by_a_model_that_was_not_told_of_it():
    # Labels that nothing in the text tells: whoever was told of a row knows it by its number.
    generator = np.random.default_rng(3)
    once = [f"word{row} again" for row in range(600)]
    texts = read_as([*once, *(f"{text.upper()} !" for text in once)], None)
    labels = np.tile(generator.integers(0, 2, 600), 2)
    model = fit(texts, labels, 2)
    assert model is not None and (model.logits(texts).argmax(axis=1) == labels).mean() > 0.95
    found = cross_fit(texts, labels, 2)
    assert found is None or found.accuracy < 0.6


def test_its_temperature_makes_it_as_sure_as_it_is_right():
    generator = np.random.default_rng(4)
    texts, labels = data(3000)
    noisy = np.where(generator.random(3000) < 0.3, generator.integers(0, 3, 3000), labels)
    found = cross_fit(texts, noisy, 3)
    assert found is not None and found.accuracy == pytest.approx(0.8, abs=0.03)
    sure = probabilities(found.logits).max(axis=1).mean()
    assert sure == pytest.approx(found.accuracy, abs=0.03)
    # Texts that it was not fitted to are answered on the same scale.
    unseen = [f"{NAMES[row % 3]} number {row}" for row in range(5000, 5300)]
    sure = probabilities(found.model.logits(unseen)).max(axis=1).mean()
    assert sure == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("classes", [2, 3])
def test_where_it_is_always_right_it_is_sure(classes):
    texts, labels = data(600, classes)
    found = cross_fit(texts, labels, classes)
    assert found is not None and found.accuracy == 1.0
    assert probabilities(found.logits)[np.arange(600), labels].mean() > 0.98
    assert np.isfinite(found.logits).all()


def test_a_class_that_train_lacks_is_never_the_answer():
    texts, labels = data(60, 2)
    model = fit(texts, labels, 4)
    assert model is not None
    logits = model.logits(texts)
    assert logits.shape == (60, 4) and set(logits.argmax(axis=1)) == {0, 1}
    assert np.isfinite(logits).all()


def test_where_nothing_can_be_learned_there_is_no_model():
    assert fit(["!"] * 20, np.arange(20) % 2, 2) is None
    assert fit(["a text"] * 20, np.zeros(20, dtype=np.int64), 2) is None
    assert cross_fit(["!"] * 20, np.arange(20) % 2, 2) is None
    assert cross_fit(["one", "two"] * 10, np.zeros(20, dtype=np.int64), 2) is None
    # Without either of two rows no model tells two classes: nobody could be answered.
    assert cross_fit(["one", "two"], np.array([0, 1]), 2) is None
