"""Word vectors: each entry of the vocabulary alone, after the middle layer, kept with the cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_teachers import GOOD, exact, small_data

from bert_kd.errors import CacheError
from bert_kd.logits.cache import LogitCache
from bert_kd.logits.word_vectors import WORDS, read_word_vectors
from bert_kd.teacher import model
from bert_kd.teacher.fill import fill_cache
from bert_kd.teacher.model import open_teacher
from bert_kd.teacher.words import word_vectors


@pytest.fixture
def prepared(trained, run):
    return small_data(run)


def test_each_entry_goes_through_the_model_alone(trained, run):
    teacher = open_teacher(run.teacher)
    vectors = word_vectors(teacher)
    assert vectors.shape == (len(teacher.tokenizer), 16)
    inputs = teacher.tokenizer(GOOD[1], return_tensors="pt")
    with torch.inference_mode():
        states = teacher.model.base_model(**inputs, output_hidden_states=True).hidden_states
    expected = states[len(states) // 2][0, 1].numpy()  # [CLS] stands before it
    place = teacher.tokenizer.convert_tokens_to_ids(GOOD[1])
    np.testing.assert_allclose(vectors[place], expected, atol=2e-3)


def test_they_are_cached_once_beside_the_logits(run, prepared, monkeypatch):
    plain = fill_cache(run, prepared, exact(), run.teacher)
    assert not (plain.folder / WORDS).exists()
    with pytest.raises(CacheError, match="run cache-logits again"):
        read_word_vectors(plain.folder)
    filled = fill_cache(run, prepared, exact(), run.teacher, words=True)
    assert filled.computed == 0 and read_word_vectors(filled.folder).any()
    assert LogitCache.open(filled.folder).missing(prepared_keys(run)).sum() == 0

    def refuse(*_):
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(model, "open_teacher", refuse)
    fill_cache(run, prepared, exact(), run.teacher, words=True)


def prepared_keys(run):
    from bert_kd.data.rows import read_rows

    return read_rows(run.split("train")).keys


def test_damaged_ones_are_named(run, prepared):
    folder = fill_cache(run, prepared, exact(), run.teacher, words=True).folder
    path = folder / WORDS
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CacheError, match="is damaged"):
        read_word_vectors(folder)
