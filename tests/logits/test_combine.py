"""Several teachers are read as one: weighted, by key, by label name."""

from __future__ import annotations

import numpy as np
import pytest
from known_answers import LABELS, answers, features, keys

from bert_kd.config import TeacherSource
from bert_kd.errors import CacheError
from bert_kd.logits.cache import LogitCache, Manifest
from bert_kd.logits.combine import centred_logarithms, read_teachers, softmax


@pytest.fixture
def teacher(tmp_path):
    """Make a cache with these logits for texts 0, 1, 2, …; return it as a source."""

    def make(name, logits, labels=LABELS, weight=1.0, extra=None, reverse=False):
        size = None if extra is None else extra.shape[1]
        cache = LogitCache.create(tmp_path / name, Manifest(name, labels, feature_size=size))
        order = slice(None, None, -1 if reverse else 1)
        cache.append(keys(len(logits))[order], logits[order], extra)
        return TeacherSource(folder=tmp_path / name, weight=weight)

    return make


def test_one_teachers_answers_are_given_as_they_are(teacher):
    for combine in ("logits", "probabilities"):
        source = teacher("one", answers(4), weight=3.0)
        assert (read_teachers([source], LABELS, keys(4), combine).logits == answers(4)).all()


def test_logits_are_averaged_by_weight(teacher):
    one = teacher("one", np.float32([[1, 2, 3], [0, 0, 1]]), weight=3.0)
    two = teacher("two", np.float32([[5, 6, -1], [4, 0, 1]]), weight=1.0, reverse=True)
    found = read_teachers([one, two], LABELS, keys(2), "logits")
    assert found.logits.dtype == np.float32
    assert found.logits.tolist() == [[2, 3, 2], [1, 0, 1]]


def test_probabilities_are_averaged_by_weight(teacher):
    first, second = np.float32([[1, 2, 3]]), np.float32([[5, 6, -1]])
    one = teacher("one", first, weight=1.0)
    two = teacher("two", second, weight=3.0)
    found = read_teachers([one, two], LABELS, keys(1), "probabilities").logits
    expected = 0.25 * softmax(first) + 0.75 * softmax(second)
    assert softmax(found) == pytest.approx(expected, abs=1e-6)
    assert found.mean(axis=1) == pytest.approx(0, abs=1e-6)


def test_weights_count_only_by_their_ratio(teacher):
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    results = []
    for number, scale in enumerate([1.0, 10.0]):
        sources = [
            teacher(f"{number}-{row}", logits[row], weight=scale * (row + 1)) for row in (0, 1)
        ]
        results.append(read_teachers(sources, LABELS, keys(5), "logits").logits)
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_columns_are_put_in_the_datas_order_by_name(teacher):
    logits = np.float32([[1, 2, 3]])
    one = teacher("one", logits, labels=("refund", "billing", "delivery"))
    assert read_teachers([one], LABELS, keys(1), "logits").logits.tolist() == [[2, 3, 1]]
    two = teacher("two", logits)
    both = read_teachers([one, two], LABELS, keys(1), "logits").logits
    assert both.tolist() == [[1.5, 2.5, 2]]


def test_other_classes_are_refused(teacher):
    source = teacher("one", answers(2), labels=("billing", "delivery", "refunds"))
    with pytest.raises(CacheError) as error:
        read_teachers([source], LABELS, keys(2), "logits")
    assert "'refund' is lacking (did you mean 'refunds'?)" in str(error.value)
    more = teacher("more", answers(2, classes=4), labels=(*LABELS, "other"))
    with pytest.raises(CacheError, match="'other' is none"):
        read_teachers([more], LABELS, keys(2), "logits")


def test_features_come_from_a_single_teacher_only(teacher):
    one = teacher("one", answers(3), extra=features(3))
    two = teacher("two", answers(3), extra=features(3))
    assert (read_teachers([one], LABELS, keys(3), "logits").features == features(3)).all()
    assert read_teachers([one], LABELS, keys(3), "logits", features=False).features is None
    assert read_teachers([one, two], LABELS, keys(3), "logits").features is None


def test_a_teacher_with_missing_rows_is_refused(teacher, tmp_path):
    one, two = teacher("one", answers(5)), teacher("two", answers(3))
    with pytest.raises(CacheError, match=r"2 of 5 rows .*two"):
        read_teachers([one, two], LABELS, keys(5), "logits")
    with pytest.raises(CacheError, match="holds no logit cache"):
        read_teachers([TeacherSource(folder=tmp_path / "none")], LABELS, keys(5), "logits")


def test_centred_logarithms_give_back_the_probabilities():
    probabilities = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    logits = centred_logarithms(probabilities)
    assert np.isfinite(logits).all()
    assert logits.mean(axis=1) == pytest.approx(0, abs=1e-6)
    assert softmax(logits) == pytest.approx(probabilities, abs=1e-6)
    # By hand: ln 1 − (0 + 2 ln 1e-7)/3.
    assert logits[1, 0] == pytest.approx(-2 * np.log(1e-7) / 3, rel=1e-6)
