"""Ragged tokens and how they are cut into batches."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bert_kd.data.batches import Tokens, bucketed_batches, encode, sorted_batches


@pytest.fixture
def tokenizer():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "where": 2, "is": 3, "my": 4, "parcel": 5}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return made


@pytest.fixture
def lengths():
    return np.random.default_rng(5).integers(1, 60, size=1000)


def test_encoding_gives_the_ids_of_each_text_whatever_the_chunk(tokenizer):
    texts = ["where is my parcel", "my parcel", "is"]
    for chunk in (1, 2, 4096):
        tokens = encode(tokenizer, texts, chunk)
        assert tokens.ids.tolist() == [2, 3, 4, 5, 4, 5, 3]
        assert tokens.offsets.tolist() == [0, 4, 6, 7]
        assert tokens.lengths.tolist() == [4, 2, 1]


def test_a_text_without_tokens_is_one_unknown(tokenizer):
    tokens = encode(tokenizer, ["", "   ", "is"])
    assert tokens.ids.tolist() == [1, 1, 3]
    assert len(encode(tokenizer, [])) == 0


def test_texts_past_the_maximum_are_cut_and_counted(tokenizer):
    tokenizer.enable_truncation(2)
    tokens = encode(tokenizer, ["where is my parcel", "my parcel", "is"])
    assert tokens.lengths.tolist() == [2, 2, 1]
    assert tokens.cut == 1


def test_padding_fills_with_zeros_up_to_the_longest_of_the_batch():
    tokens = Tokens(np.array([7, 8, 9, 5], dtype=np.int32), np.array([0, 3, 4]))
    ids, lengths = tokens.padded(np.array([1, 0]))
    assert ids.tolist() == [[5, 0, 0], [7, 8, 9]]
    assert lengths.tolist() == [1, 3]


def test_taking_texts_keeps_the_given_order():
    tokens = Tokens(np.array([7, 8, 9, 5, 6], dtype=np.int32), np.array([0, 3, 4, 5]))
    taken = tokens.take(np.array([2, 0]))
    assert taken.ids.tolist() == [6, 7, 8, 9]
    assert taken.lengths.tolist() == [1, 3]
    assert len(tokens.take(np.zeros(0, dtype=np.int64))) == 0


def test_bucketed_batches_hold_every_row_once_with_little_padding(lengths):
    batches = bucketed_batches(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert all(len(batch) <= 16 for batch in batches)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()


def test_bucketed_batches_differ_by_epoch_and_repeat_by_seed(lengths):
    generator = np.random.default_rng(1)
    first = bucketed_batches(lengths, 16, generator)
    second = bucketed_batches(lengths, 16, generator)
    again = bucketed_batches(lengths, 16, np.random.default_rng(1))
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    assert [len(batch) for batch in first] != sorted(len(batch) for batch in first)


def test_sorted_batches_keep_the_token_budget_longest_first(lengths):
    batches = list(sorted_batches(lengths, 256))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert all(len(batch) * lengths[batch].max() <= 256 for batch in batches)
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own():
    batches = list(sorted_batches(np.array([3, 500, 4]), 10))
    assert [batch.tolist() for batch in batches] == [[1], [2, 0]]
