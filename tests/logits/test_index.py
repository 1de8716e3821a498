"""Keys are found wherever they stand, equal halves and repeats included."""

from __future__ import annotations

import numpy as np
import pytest
from known_answers import keys

from bert_kd.data.keys import KEY_DTYPE, Keys
from bert_kd.logits.index import group_keys, index_keys


def pairs(*values: tuple[int, int]) -> Keys:
    return np.array(list(values), dtype=KEY_DTYPE)


def test_finds_what_is_there_and_nothing_else():
    index = index_keys(keys(1000))
    assert len(index) == 1000
    assert (index.find(keys(1000)) >= 0).all()
    assert (index.find(keys(1000, start=1000)) == -1).all()


def test_is_sorted_as_bytes_are():
    index = index_keys(keys(200))
    assert [key.tobytes() for key in index.keys()] == sorted(key.tobytes() for key in keys(200))


def test_keys_with_equal_halves_are_told_apart():
    there = pairs((7, 5), (7, 1), (7, 9), (7, 3), (2, 5), (9, 0))
    index = index_keys(there)
    assert len(index) == 6
    assert len(set(index.find(there).tolist())) == 6
    assert (index.find(there) >= 0).all()
    absent = pairs((7, 0), (7, 2), (7, 4), (7, 10), (2, 4), (3, 5), (9, 1), (0, 0), (10, 5))
    assert (index.find(absent) == -1).all()


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_set_where_halves_collide(seed):
    generator = np.random.default_rng(seed)
    there = np.empty(generator.integers(1, 60), dtype=KEY_DTYPE)
    asked = np.empty(100, dtype=KEY_DTYPE)
    for part in (there, asked):
        part["high"] = generator.choice(np.uint64([0, 1, 2, 2**64 - 1]), len(part))
        part["low"] = generator.choice(np.uint64([0, 1, 5, 2**63, 2**64 - 1]), len(part))
    known = {key.tobytes() for key in there}
    index, first, group = group_keys(there)
    assert len(index) == len(known)
    assert ((index.find(asked) >= 0) == [key.tobytes() in known for key in asked]).all()
    assert (there[first][group] == there).all()
    assert (index.find(there) == group).all()
    for place, row in enumerate(first):
        assert row == np.flatnonzero(group == place)[0]


def test_joined_holds_the_keys_of_both_once():
    joined = index_keys(keys(30)).joined(index_keys(keys(30, start=20)))
    assert len(joined) == 50
    assert (joined.find(keys(50)) >= 0).all()


def test_nothing_is_found_among_nothing():
    empty = index_keys(keys(0))
    assert (empty.find(keys(3)) == -1).all()
    assert len(empty.find(keys(0))) == len(index_keys(keys(3)).find(keys(0))) == 0
