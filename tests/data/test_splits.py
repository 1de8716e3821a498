"""Which rows are equal, and what a cut gives to whom."""

import numpy as np
import pytest

from bert_kd.data.keys import KEY_DTYPE, folded_keys, row_keys
from bert_kd.data.splits import TEST, TRAIN, VALIDATION, contained, cut, group


def labelled(count, classes=3, start=0):
    """Return keys and labels of `count` distinct texts."""
    keys = row_keys([f"text {number}" for number in range(start, start + count)])
    labels = (np.arange(start, start + count) % classes).astype(np.int32)
    return keys, labels


def test_repeats_are_all_but_the_first_of_equal_texts():
    groups = group(row_keys(["a", "b", "a", "c", "b", "a"]))
    assert groups.repeats().tolist() == [False, False, True, False, True, True]
    assert len(groups) == 3


def test_range_and_spread_work_by_group():
    groups = group(row_keys(["a", "b", "a", "c"]))
    least, greatest = groups.range(np.array([5, 1, 2, 7], dtype=np.int32))
    assert groups.spread(least).tolist() == [2, 1, 2, 7]
    assert groups.spread(greatest).tolist() == [5, 1, 5, 7]


def test_keys_that_agree_in_one_half_are_kept_apart():
    halves = [(1, 2), (1, 3), (1, 2), (2, 2), (1, 3)]
    keys = np.array(halves, dtype=KEY_DTYPE)
    groups = group(keys)
    assert len(groups) == 3
    assert groups.repeats().tolist() == [False, False, True, False, True]
    assert contained(keys[:2], keys[2:3]).tolist() == [True, False]


def test_contained_finds_texts_on_the_other_side():
    found = contained(row_keys(["a", "b", "a", "c"]), row_keys(["c", "a", "d"]))
    assert found.tolist() == [True, False, True, True]
    assert not contained(row_keys(["a"]), row_keys([])).any()
    assert contained(row_keys([]), row_keys(["a"])).shape == (0,)


def test_a_cut_takes_its_share_of_every_class():
    keys, labels = labelled(3000)
    went = cut(keys, keys, labels, 0.1, 0.2)
    for label in range(3):
        counts = np.bincount(went[labels == label], minlength=3)
        assert counts.tolist() == [700, 100, 200]


def test_a_cut_is_the_same_in_any_order_of_rows():
    keys, labels = labelled(999)
    went = cut(keys, keys, labels, 0.1, 0.1)
    order = np.random.default_rng(3).permutation(999)
    assert cut(keys[order], keys[order], labels[order], 0.1, 0.1).tolist() == went[order].tolist()


def test_adding_rows_moves_hardly_any_row():
    keys, labels = labelled(10_000)
    went = cut(keys, keys, labels, 0.1, 0.1)
    more_keys, more_labels = labelled(500, start=10_000)
    keys = np.concatenate([keys, more_keys])
    again = cut(keys, keys, np.concatenate([labels, more_labels]), 0.1, 0.1)
    moved = int((again[:10_000] != went).sum())
    # Only rows at the two borders move; a fresh draw would move about 3,400.
    assert moved <= 60


def test_the_validation_cut_does_not_depend_on_whether_test_is_cut_too():
    keys, labels = labelled(2000)
    both = cut(keys, keys, labels, 0.1, 0.1)
    alone = cut(keys, keys, labels, 0.1, None)
    assert (both == VALIDATION).tolist() == (alone == VALIDATION).tolist()
    assert not (alone == TEST).any()


def test_equal_texts_never_land_on_both_sides_whatever_their_labels():
    texts = [f"text {number % 300}" for number in range(1200)]
    labels = np.random.default_rng(1).integers(0, 2, 1200).astype(np.int32)
    went = cut(row_keys(texts), row_keys(texts), labels, 0.2, 0.2)
    sides = {}
    for text, side in zip(texts, went.tolist(), strict=True):
        assert sides.setdefault(text, side) == side
    assert set(sides.values()) == {TRAIN, VALIDATION, TEST}


def test_variants_of_a_text_never_land_on_both_sides_and_move_no_other_text():
    texts = [f"text {number}" for number in range(600)]
    variants = [text.upper() for text in texts[:300]] + [f" {text}" for text in texts[:300]]
    labels = np.arange(600, dtype=np.int32) % 2
    alone = cut(row_keys(texts), folded_keys(texts), labels, 0.2, 0.2)
    every = [*texts, *variants]
    numbers = np.concatenate([labels, labels[:300], labels[:300]])
    went = cut(row_keys(every), folded_keys(every), numbers, 0.2, 0.2)
    assert went[:300].tolist() == went[600:900].tolist() == went[900:].tolist()
    assert set(went[600:900].tolist()) == {TRAIN, VALIDATION, TEST}
    # Texts without variants stay, but for those at the borders of the cut.
    assert (went[300:600] != alone[300:]).mean() < 0.2
    order = np.random.default_rng(3).permutation(len(every))
    keys, folded = row_keys(every)[order], folded_keys(every)[order]
    assert cut(keys, folded, numbers[order], 0.2, 0.2).tolist() == went[order].tolist()


@pytest.mark.parametrize(("size", "expected"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1])])
def test_small_classes_keep_a_row_in_train(size, expected):
    keys, _ = labelled(size)
    went = cut(keys, keys, np.zeros(size, dtype=np.int32), 0.1, 0.1)
    assert np.bincount(went, minlength=3).tolist() == expected


def test_a_large_cut_keeps_its_share_in_every_class():
    generator = np.random.default_rng(0)
    keys = np.frombuffer(generator.bytes(16 * 100_000), dtype=KEY_DTYPE)
    labels = generator.choice(4, 100_000, p=[0.9, 0.05, 0.04, 0.01]).astype(np.int32)
    went = cut(keys, keys, labels, 0.1, 0.1)
    for label in range(4):
        counts = np.bincount(went[labels == label], minlength=3)
        assert counts[VALIDATION] == counts[TEST] == round(0.1 * counts.sum())
