from __future__ import annotations

from pathlib import Path

import controls
import numpy as np
import pytest
from static_vectors import static_vectors

from bert_kd.data.keys import row_keys
from bert_kd.data.rows import Rows

GOOD = ["a fine film", "fine work , truly fine", "lovely and warm", "warm , fine and lovely"]
BAD = ["a dull film", "dull work , truly dull", "noisy and cold", "cold , dull and noisy"]


def rows(pair: bool = False) -> Rows:
    """Twenty-four rows that their words tell apart; pairs are equal or not."""
    if pair:
        texts = [*GOOD, *BAD] * 3
        texts_b = [*GOOD, *BAD[::-1]] * 3
        gold = [int(a == b) for a, b in zip(texts, texts_b, strict=True)]
    else:
        texts, texts_b = [*GOOD, *BAD] * 3, None
        gold = [0] * 4 + [1] * 4
        gold *= 3
    return Rows(
        row_keys(texts, texts_b),
        texts,
        texts_b,
        np.array(gold),
        np.zeros(len(texts), dtype=np.int16),
    )


def fits(tiny_bert: Path) -> dict[str, controls.Fit]:
    pytest.importorskip("fasttext")
    return {
        controls.TFIDF: controls.tfidf(),
        controls.FASTTEXT: controls.fasttext(),
        controls.STATIC: controls.static(tiny_bert),
    }


def test_every_control_learns_what_words_tell(tiny_bert: Path):
    train = rows()
    for name, fit in fits(tiny_bert).items():
        settings = controls.GRIDS[name][-1]
        control = fit(train, settings, 1)
        found = control.predict(train.texts, None)
        assert (found == train.labels).all(), name
        assert 0 < control.parameters_without_embedding <= control.parameters, name
        assert control.bytes > 0, name
        again = fit(train, settings, 1).predict(train.texts, None)
        assert (found == again).all(), name


def test_linear_controls_see_whether_the_sides_of_a_pair_agree(tiny_bert: Path):
    train = rows(pair=True)
    for name in (controls.TFIDF, controls.STATIC):
        control = fits(tiny_bert)[name](train, controls.GRIDS[name][-1], 1)
        found = control.predict(train.texts, train.texts_b)
        assert (found == train.labels).all(), name
        swapped = control.predict(train.texts_b, train.texts)
        assert (found == swapped).all(), name


def test_the_best_on_validation_is_chosen():
    def fit(train: Rows, settings: controls.Settings, seed: int):
        class Constant:
            def predict(self, texts, texts_b):
                return np.full(len(texts), settings["answer"])

        return Constant()

    validation = rows()
    validation.labels[:20] = 1
    choice = controls.choose(fit, [{"answer": 0}, {"answer": 1}], rows(), validation)
    assert choice.settings == {"answer": 1}
    assert choice.accuracy == pytest.approx((validation.labels == 1).mean())
    assert len(choice.tried) == 2


def test_a_setting_that_diverges_is_not_chosen():
    class Right:
        def predict(self, texts, texts_b):
            return rows().labels

    def fit(train: Rows, settings: controls.Settings, seed: int):
        if settings["lr"] > 1:
            raise controls.Diverged("diverged")
        return Right()

    choice = controls.choose(fit, [{"lr": 5}, {"lr": 1}], rows(), rows())
    assert choice.settings == {"lr": 1} and choice.tried[0][1] == 0.0


def test_units_of_chinese_are_characters():
    assert controls.units("iPhone很好用, 5星!") == [
        *("iphone", "很", "好", "用", ",", "5", "星", "!")
    ]


def test_static_vectors_shorten_frequent_pieces_and_ignore_foreign_ones(tiny_bert: Path):
    vectors = static_vectors(rows(), tiny_bert, size=4)
    weighted = vectors.weighted()
    assert vectors.vectors.shape == weighted.vectors.shape and vectors.vectors.shape[1] == 4
    kept = np.linalg.norm(weighted.vectors, axis=1) / np.linalg.norm(vectors.vectors, axis=1)
    often = vectors.frequencies == vectors.frequencies.max()
    assert kept[often].max() < kept[~often].min()
    assert np.abs(vectors(["好"])).sum() == 0
    assert np.linalg.norm(vectors(["fine"])) == pytest.approx(2.0, rel=1e-4)
