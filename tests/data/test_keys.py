"""Row keys: stable, content alone, pairs unambiguous."""

import numpy as np

from bert_kd.data.keys import (
    KEY_DTYPE,
    folded_keys,
    hex_keys,
    join_keys,
    key_bytes,
    row_key,
    row_keys,
)


def test_a_key_is_128_bits_of_blake2b_and_stays_what_it_is():
    # Published caches join by these: a change here orphans every one of them.
    assert row_key("hello").hex() == "46fb7408d4f285228f4af516ea25851b"
    assert row_key("hello", "there").hex() == "a8abe64a7dd5cb5dd16d1c86d420e519"


def test_keys_depend_on_content_alone():
    texts = ["one", "two", "one", "", "naïve 店"]
    keys = row_keys(texts)
    assert keys[0] == keys[2]
    assert len(np.unique(keys)) == 4
    assert keys[::-1].tolist() == row_keys(texts[::-1]).tolist()


def test_folded_keys_leave_case_width_and_white_space_out():
    same = ["Straße  no\t1", " strasse NO １ ", "STRASSE no 1\n", "stra\u00dfe\u00a0no 1"]
    assert len(np.unique(folded_keys(same))) == 1
    assert folded_keys(same[:1]) == row_keys(["strasse no 1"])
    assert len(np.unique(folded_keys(["e\u0301", "\u00c9", "E\u0301 ", "e"]))) == 2
    other = ["no1", "no 1", "no, 1", "nó 1"]
    assert len(np.unique(folded_keys(other))) == 4
    pairs = folded_keys(["A  b", "a B", "a"], ["C", "c ", "b c"])
    assert pairs[0] == pairs[1] != pairs[2]


def test_a_pair_is_neither_its_texts_joined_nor_swapped():
    keys = row_keys(["ab", "a", "c", "abc"], ["c", "bc", "ab", ""])
    assert len(np.unique(keys)) == 4
    assert row_key("abc") not in {key.tobytes() for key in keys}


def test_hexadecimal_keys_read_like_the_bytes():
    texts = ["one", "two"]
    assert hex_keys(row_keys(texts)) == [row_key(text).hex() for text in texts]


def test_sorting_keys_sorts_their_bytes():
    texts = [f"text {number}" for number in range(500)]
    keys = np.sort(row_keys(texts), order=("high", "low"))
    assert [key.tobytes() for key in keys] == sorted(row_key(text) for text in texts)


def test_joined_keys_keep_their_bytes():
    # NumPy joins arrays in the machine's byte order: the values stay, the bytes don't.
    parts = [row_keys(["one", "two"]), row_keys(["three"])]
    joined = join_keys(parts)
    expected = b"".join(row_key(text) for text in ("one", "two", "three"))
    assert joined.dtype == KEY_DTYPE and joined.tobytes() == expected
    assert key_bytes(np.concatenate(parts)) == expected
    assert hex_keys(np.concatenate(parts)) == [key.tobytes().hex() for key in joined]
    assert join_keys([]).shape == (0,)
