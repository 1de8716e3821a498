"""Vectors of characters: from the data's arrays to a file that a student starts from."""

from __future__ import annotations

from pathlib import Path

import character_vectors
import numpy as np
import pytest
import quality
from places import CONFIGS
from quality_suites import SUITES
from tokenizers import Tokenizer

from bert_kd.config import VocabularyConfig
from bert_kd.config_file import load_config
from bert_kd.errors import UserError
from bert_kd.student.embeddings import start_vectors
from bert_kd.student.vocabulary import build_tokenizer

CHARACTERS = [" ", "房", "价", "<UNK>"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    values = np.random.default_rng(1).normal(size=(len(CHARACTERS), character_vectors.SIZE))
    folder = tmp_path / "thucnews"
    folder.mkdir()
    np.savez(folder / character_vectors.VECTORS, embeddings=values)
    text = "\n".join(CHARACTERS) + "\n"
    (folder / character_vectors.CHARACTERS).write_text(text, encoding="utf-8")
    return folder


def test_a_student_starts_from_the_vectors(data: Path, tmp_path: Path):
    request = quality.Request(
        SUITES["thucnews"], "main", CONFIGS / "thucnews.toml", data, tmp_path / "work", 1, ()
    )
    config = load_config(request.config, request.all_overrides)
    character_vectors.write_vectors(request.data, request.work)
    tokenizer: Tokenizer = build_tokenizer(VocabularyConfig(kind="words"), ["房价猫"])
    start = start_vectors(config.students[0].embedding, tokenizer, None, None, 1)
    assert start is not None and start.found == 2
    with np.load(data / character_vectors.VECTORS) as arrays:
        given = arrays["embeddings"]
    # Start values are centred and scaled alike: what lies between the two is what was given.
    found = start.vectors[tokenizer.token_to_id("房")] - start.vectors[tokenizer.token_to_id("价")]
    assert np.corrcoef(found, given[1] - given[2])[0, 1] > 0.9999


def test_data_without_vectors_changes_nothing(tmp_path: Path):
    assert character_vectors.overrides(None, tmp_path) == ()
    assert character_vectors.overrides(tmp_path, tmp_path) == ()
    character_vectors.write_vectors(tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_vectors_of_other_characters_are_refused(data: Path, tmp_path: Path):
    (data / character_vectors.CHARACTERS).write_text("房\n", encoding="utf-8")
    with pytest.raises(UserError, match="has 1 lines"):
        character_vectors.write_vectors(data, tmp_path / "work")
