"""Which rows without a gold label a student learns from."""

import numpy as np
import pytest
from pydantic import ValidationError

from bert_kd.config import RowsConfig
from bert_kd.data.keys import row_keys
from bert_kd.student.choice import choose_rows, entropy


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    keys = row_keys([str(number) for number in range(60)])
    labels = np.where(np.arange(60) % 3 == 0, 1, -1)
    logits = generator.normal(0, 3, (60, 4)).astype(np.float32)
    return keys, labels, logits


def test_entropy_is_that_of_the_softmax():
    logits = np.array([[0, 0], [30, -30], [np.log(3), 0]], dtype=np.float32)
    expected = [np.log(2), 0.0, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    assert entropy(logits) == pytest.approx(expected, abs=1e-6)


def test_without_a_limit_or_below_it_all_are_taken(rows):
    assert choose_rows(RowsConfig(), *rows) is None
    assert choose_rows(RowsConfig(maximum=40), *rows) is None


@pytest.mark.parametrize("choose", ["random", "uncertain"])
def test_gold_rows_stay_and_the_others_are_as_many_as_asked(rows, choose):
    chosen = choose_rows(RowsConfig(maximum=11, choose=choose), *rows)
    labels = rows[1]
    assert (np.diff(chosen) > 0).all()
    assert set(np.flatnonzero(labels >= 0)) <= set(chosen)
    assert int((labels[chosen] < 0).sum()) == 11


def test_half_are_the_most_uncertain_of_the_rest(rows):
    keys, labels, logits = rows
    chosen = choose_rows(RowsConfig(maximum=10, choose="uncertain"), keys, labels, logits)
    by_chance = choose_rows(RowsConfig(maximum=5), keys, labels, logits)
    assert set(by_chance) < set(chosen)
    sure = set(chosen) - set(by_chance)
    left = set(range(60)) - set(chosen)
    uncertainty = entropy(logits)
    assert len(sure) == 5
    assert min(uncertainty[list(sure)]) >= max(uncertainty[list(left)])


@pytest.mark.parametrize("choose", ["random", "uncertain"])
def test_the_choice_does_not_depend_on_the_order(rows, choose):
    config = RowsConfig(maximum=9, choose=choose)
    order = np.random.default_rng(1).permutation(60)
    chosen = choose_rows(config, *rows)
    turned = choose_rows(config, *(part[order] for part in rows))
    assert set(order[turned]) == set(chosen)


def test_uncertain_needs_a_maximum():
    with pytest.raises(ValidationError, match="needs 'maximum'"):
        RowsConfig(choose="uncertain")
