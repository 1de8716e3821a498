"""Filling the cache: every key once, only what is missing, after a kill, by many writers."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_teachers import (
    LABELS,
    as_rows,
    exact,
    settings,
    small_data,
    some_texts,
    write_data,
)

from bert_kd.config import LogitsConfig
from bert_kd.data.keys import row_keys
from bert_kd.data.rows import read_rows
from bert_kd.errors import CacheError, StageError
from bert_kd.logits.cache import LogitCache
from bert_kd.teacher import answer, model
from bert_kd.teacher.card import Card, fingerprint_teacher
from bert_kd.teacher.fill import fill_cache
from bert_kd.teacher.model import load_base, open_teacher, save_teacher

HERE = Path(__file__).parent
ROWS = 48 + 16 + 16


@pytest.fixture
def prepared(trained, run):
    return small_data(run)


@pytest.fixture
def asked(monkeypatch):
    """The texts that the teacher was asked for, call by call."""
    calls = []
    original = answer.Answering.__call__

    def call(self, texts, texts_b, advance=None):
        calls.append(list(texts))
        return original(self, texts, texts_b, advance)

    monkeypatch.setattr(answer.Answering, "__call__", call)
    return calls


def test_every_split_is_answered_in_shards_of_the_asked_size(trained, run, prepared):
    filled = fill_cache(run, prepared, exact(rows_per_shard=32), run.teacher)
    assert (filled.rows, filled.computed, filled.reused, filled.shards) == (ROWS, ROWS, 0, 3)
    assert filled.folder == run.cache(fingerprint_teacher(run.teacher, "fp32"))
    cache = LogitCache.open(filled.folder)
    assert cache.manifest.labels == LABELS and cache.manifest.facts["model"] == "small"
    for split in ("train", "validation", "test"):
        rows = read_rows(run.split(split))
        expected = answer.answer(trained, rows.texts).logits
        np.testing.assert_allclose(cache.lookup(rows.keys).logits, expected, atol=1e-6)


def test_a_second_pass_reuses_everything_and_opens_no_model(run, prepared, monkeypatch):
    fill_cache(run, prepared, exact(), run.teacher)
    monkeypatch.setattr(model, "open_teacher", lambda folder: pytest.fail("the model was loaded"))
    again = fill_cache(run, prepared, exact(), run.teacher)
    assert (again.rows, again.computed, again.reused, again.shards) == (ROWS, 0, ROWS, 0)


def test_only_new_rows_are_computed(run, prepared, asked):
    fill_cache(run, prepared, exact(), run.teacher)
    asked.clear()
    texts, gold = some_texts(60, 1)  # the first 48 are those of before
    more = write_data(
        run, {"train": as_rows(texts, gold), "validation": read_rows(run.split("validation"))}
    )
    filled = fill_cache(run, more, exact(), run.teacher)
    assert (filled.computed, filled.reused) == (12, 48 + 16)
    assert asked == [texts[48:]]


def test_a_text_that_stands_twice_is_computed_once(run, trained, asked):
    texts, gold = some_texts(10, 1)
    doubled = as_rows([*texts, *texts], np.concatenate([gold, gold]))
    prepared = write_data(run, {"train": doubled, "test": as_rows(texts[:3], gold[:3])})
    filled = fill_cache(run, prepared, exact(rows_per_shard=4), run.teacher)
    assert (filled.rows, filled.computed, filled.shards) == (10, 10, 3)
    assert sorted(text for call in asked for text in call) == sorted(texts)


def test_transfer_texts_are_answered_too(run, trained):
    texts, gold = some_texts(8, 1)
    pool = as_rows(*some_texts(8, 20))
    pool.labels[:] = -1
    prepared = write_data(run, {"train": as_rows(texts, gold), "transfer": pool})
    filled = fill_cache(run, prepared, exact(), run.teacher)
    assert not LogitCache.open(filled.folder).missing(pool.keys).any()


def test_several_writers_share_the_rows(run, prepared, asked):
    filled = [fill_cache(run, prepared, exact(), run.teacher, part=(i, 3)) for i in (1, 2, 3)]
    assert sum(one.computed for one in filled) == ROWS
    assert all(0 < one.computed < ROWS and one.reused == 0 for one in filled)
    texts = [text for call in asked for text in call]
    assert len(texts) == len(set(texts)) == ROWS
    assert fill_cache(run, prepared, exact(), run.teacher).computed == 0
    with pytest.raises(CacheError, match="part 4/3"):
        fill_cache(run, prepared, exact(), run.teacher, part=(4, 3))


def test_a_killed_pass_goes_on_with_what_is_missing(run, prepared, base, asked):
    command = [sys.executable, str(HERE / "killed.py"), "cache", str(run.root), str(base), "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    filled = fill_cache(run, prepared, exact(rows_per_shard=16), run.teacher)
    # Two shards of 16 were there; the one in hand was lost.
    assert (filled.computed, filled.reused) == (ROWS - 32, 32)
    assert sum(len(call) for call in asked) == ROWS - 32
    cache = LogitCache.open(filled.folder)
    rows = read_rows(run.split("train"))
    expected = answer.answer(open_teacher(run.teacher), rows.texts).logits
    np.testing.assert_allclose(cache.lookup(rows.keys).logits, expected, atol=1e-6)


def test_only_the_rows_of_a_damaged_shard_are_computed_again(run, prepared, asked):
    filled = fill_cache(run, prepared, exact(rows_per_shard=16), run.teacher)
    shard = sorted(filled.folder.glob("part-*.parquet"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(bytes(content))
    asked.clear()
    assert fill_cache(run, prepared, exact(rows_per_shard=16), run.teacher).computed == 16
    assert fill_cache(run, prepared, exact(rows_per_shard=16), run.teacher).computed == 0


def test_progress_starts_at_what_is_reused(run, prepared, capfd):
    fill_cache(run, prepared, exact(), run.teacher, part=(1, 2))
    capfd.readouterr()
    fill_cache(run, prepared, exact(), run.teacher)
    assert f"asking the teacher: {ROWS}/{ROWS} rows" in capfd.readouterr().err


def test_bf16_has_its_own_cache_and_its_effect_is_recorded(run, prepared, capfd):
    wide = fill_cache(run, prepared, exact(), run.teacher)
    rounded = fill_cache(run, prepared, LogitsConfig(precision="bf16"), run.teacher)
    assert rounded.computed == ROWS and rounded.folder != wide.folder
    manifest = LogitCache.open(rounded.folder).manifest
    effect = manifest.facts["effect_of_bf16"]
    assert manifest.precision == "bf16" and effect["rows"] == 48
    assert 0 < effect["mean"] <= effect["largest"] and 0 <= effect["agreement"] <= 1
    assert "bf16 moves the logits of 48 rows" in capfd.readouterr().err


def test_features_are_cached_when_asked_for(run, prepared):
    filled = fill_cache(run, prepared, exact(features=True), run.teacher)
    cache = LogitCache.open(filled.folder)
    assert cache.manifest.feature_size == 16
    rows = read_rows(run.split("test"))
    assert cache.lookup(rows.keys).features.shape == (16, 16)
    # A pass that does not ask for them adds to the same cache.
    texts, gold = some_texts(52, 1)
    more = write_data(run, {"train": as_rows(texts, gold)})
    assert fill_cache(run, more, exact(), run.teacher).computed == 4


def test_features_can_not_be_added_to_a_cache_without(run, prepared):
    fill_cache(run, prepared, exact(), run.teacher)
    with pytest.raises(CacheError, match="holds no features: remove it"):
        fill_cache(run, prepared, exact(features=True), run.teacher)


def test_data_with_other_labels_needs_another_teacher(run, prepared):
    with pytest.raises(StageError, match="answers bad, good, but the data now has no, yes: run"):
        fill_cache(run, replace(prepared, labels=("no", "yes")), exact(), run.teacher)
    with pytest.raises(StageError, match=r"bad, good \(pairs\)"):
        fill_cache(run, replace(prepared, pair=True), exact(), run.teacher)


def test_pairs_are_cached_by_both_texts(run, base):
    config = settings(base)
    save_teacher(run.teacher, load_base(config, LABELS), Card(LABELS, True, 16), {"base": "small"})
    texts, gold = some_texts(8, 1)
    seconds = some_texts(8, 2)[0]
    prepared = write_data(run, {"train": as_rows(texts, gold, seconds)})
    filled = fill_cache(run, prepared, exact(rows_per_shard=3), run.teacher)
    assert filled.shards == 3
    found = LogitCache.open(filled.folder).lookup(row_keys(texts, seconds)).logits
    expected = answer.answer(open_teacher(run.teacher), texts, seconds).logits
    np.testing.assert_allclose(found, expected, atol=1e-6)
