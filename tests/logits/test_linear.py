"""The linear model of n-grams: what it answers, and that no row is answered as it was told."""

from __future__ import annotations

import numpy as np
import pytest

from bert_kd.logits.linear import FOLDS, LinearModel, cross_fit, fit, read_as

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
    assert read_as(["a", "b"], ["c", "d"]) == ["a\nc", "b\nd"]
    assert len(read_as(["x" * 5000], None)[0]) == 2000
    assert len(read_as(["x" * 5000], ["y" * 5000])[0]) == 4001


def test_a_row_is_answered_by_a_model_that_was_not_told_of_it():
    # Labels that nothing in the text tells: whoever was told of a row knows it by its number.
    generator = np.random.default_rng(3)
    texts = [f"word{row} again" for row in range(600)]
    labels = generator.integers(0, 2, 600)
    model = fit(texts, labels, 2)
    assert model is not None and (model.logits(texts).argmax(axis=1) == labels).mean() > 0.95
    folds = np.arange(600) % FOLDS
    found = cross_fit(texts, labels, folds, 2)
    assert found is None or found.accuracy < 0.6


def test_its_temperature_makes_it_as_sure_as_it_is_right():
    generator = np.random.default_rng(4)
    texts, labels = data(3000)
    noisy = np.where(generator.random(3000) < 0.3, generator.integers(0, 3, 3000), labels)
    found = cross_fit(texts, noisy, np.arange(3000) % FOLDS, 3)
    assert found is not None and found.accuracy == pytest.approx(0.8, abs=0.03)
    sure = probabilities(found.logits).max(axis=1).mean()
    assert sure == pytest.approx(found.accuracy, abs=0.03)
    # Texts that it was not fitted to are answered on the same scale.
    unseen = [f"{NAMES[row % 3]} number {row}" for row in range(5000, 5300)]
    sure = probabilities(found.model.logits(unseen)).max(axis=1).mean()
    assert sure == pytest.approx(0.8, abs=0.06)


def test_a_class_that_train_lacks_is_never_the_answer():
    texts, labels = data(60, 2)
    model = fit(texts, labels, 4)
    assert model is not None
    logits = model.logits(texts)
    assert logits.shape == (60, 4) and set(logits.argmax(axis=1)) == {0, 1}
    assert np.isfinite(logits).all()


def test_where_nothing_can_be_learned_there_is_no_model():
    folds = np.arange(20) % FOLDS
    assert fit(["!"] * 20, np.arange(20) % 2, 2) is None
    assert fit(["a text"] * 20, np.zeros(20, dtype=np.int64), 2) is None
    assert cross_fit(["!"] * 20, np.arange(20) % 2, folds, 2) is None
    assert cross_fit(["one", "two"] * 10, np.zeros(20, dtype=np.int64), folds, 2) is None
