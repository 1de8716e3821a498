"""Start values: from the teacher's token vectors and from word-vector files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bert_kd.config import EmbeddingConfig, VocabularyConfig
from bert_kd.errors import CacheError, StudentError
from bert_kd.logits.word_vectors import write_word_vectors
from bert_kd.student.embeddings import SPREAD, start_vectors
from bert_kd.student.vocabulary import build_tokenizer

TEXTS = ["the film is good", "not bad, don't", "wonderful"]


def vectors_of(kind: str, config: EmbeddingConfig, teacher: Path | None, cache: Path | None = None):
    source = teacher / "tokenizer.json" if teacher else None
    tokenizer = build_tokenizer(VocabularyConfig(kind=kind), TEXTS, source)
    return tokenizer.get_vocab(), start_vectors(config, tokenizer, teacher, cache, seed=1)


def distances(vectors):
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)


def test_random_starts_are_left_to_the_model(teacher_folder: Path):
    assert vectors_of("words", EmbeddingConfig(start="random"), teacher_folder)[1] is None


def test_pca_keeps_distances_when_it_keeps_all_axes(teacher_folder: Path):
    vocabulary, start = vectors_of("wordpiece", EmbeddingConfig(size=12), teacher_folder)
    matrix = load_file(teacher_folder / "model.safetensors")
    teacher = matrix["bert.embeddings.word_embeddings.weight"]
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(teacher_folder / "tokenizer.json")).get_vocab()
    words = ["film", "good", "bad", "is"]
    mine = distances(start.vectors[[vocabulary[word] for word in words]])
    theirs = distances(teacher[[known[word] for word in words]])
    off_diagonal = ~np.eye(4, dtype=bool)
    ratios = mine[off_diagonal] / theirs[off_diagonal]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)  # one scale for all
    assert start.found == len(vocabulary) - 2
    assert (start.vectors[0] == 0).all()  # padding
    assert start.vectors[2:].std() == pytest.approx(SPREAD, rel=0.05)


def test_pca_keeps_the_axes_of_largest_variance(teacher_folder: Path):
    _, start = vectors_of("wordpiece", EmbeddingConfig(size=3), teacher_folder)
    spread = start.vectors[2:].var(axis=0)
    assert (np.diff(spread) <= 1e-6).all()


def test_more_dimensions_than_the_teacher_has_are_filled(teacher_folder: Path):
    _, start = vectors_of("wordpiece", EmbeddingConfig(size=20), teacher_folder)
    assert start.vectors.shape[1] == 20
    assert (start.vectors[2:].std(axis=0) > 0).all()


def test_a_word_is_the_mean_of_its_pieces(teacher_folder: Path):
    vocabulary, start = vectors_of("words", EmbeddingConfig(size=12), teacher_folder)
    assert "wonderful" in vocabulary  # "wonder", "##ful" for the teacher
    assert start.found == len(vocabulary) - 2


def test_without_a_teacher_folder_the_remedy_is_named(tmp_path: Path):
    with pytest.raises(StudentError, match='start = "random"'):
        vectors_of("words", EmbeddingConfig(), None)


@pytest.mark.parametrize("header", ["", "3 2\n"])
@pytest.mark.parametrize("zipped", [False, True])
def test_word_vector_files_are_read(tmp_path: Path, header: str, zipped: bool):
    text = header + "good 1 2\n\nFilm 3 4\nzebra 5 6\nnew york 7 8\n"
    path = tmp_path / ("vectors.txt.gz" if zipped else "vectors.txt")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    config = EmbeddingConfig(size=2, start="file", file=path)
    vocabulary, start = vectors_of("words", config, None)
    assert start.found == 2  # "good", and "film" by its lower case
    good, film = start.vectors[vocabulary["good"]], start.vectors[vocabulary["film"]]
    expected = [2 * SPREAD, 2 * SPREAD]  # (3−1, 4−2) at one scale
    np.testing.assert_allclose(film - good, expected, rtol=1e-5)


def test_a_chinese_entry_has_the_mean_of_its_characters(tmp_path: Path):
    path = tmp_path / "characters.txt"
    path.write_text("房 1 2\n价 3 6\n股 5 0\n股市 9 9\n", encoding="utf-8")
    config = EmbeddingConfig(size=2, start="file", file=path)
    texts = ["房价", "看房价", "股市", "看股市", "跌股市", "涨股市"] * 5
    tokenizer = build_tokenizer(VocabularyConfig(kind="bpe"), texts, None)
    vocabulary, start = tokenizer.get_vocab(), start_vectors(config, tokenizer, None, None, seed=1)

    def of(entry: str) -> np.ndarray:
        return start.vectors[vocabulary[entry]]

    scale = (of("价") - of("房")) / [2, 4]
    assert scale == pytest.approx(scale[0])
    np.testing.assert_array_equal(of("##房"), of("房"))  # within a word as at its start
    np.testing.assert_allclose(of("房价"), (of("房") + of("价")) / 2, rtol=1e-5)
    np.testing.assert_array_equal(of("##股市"), of("股市"))  # the file's own
    np.testing.assert_allclose(of("股市") - of("房"), [8, 7] * scale, rtol=1e-5)
    known = {"房", "价", "股", "房价", "股市"}
    assert start.found == sum(entry.removeprefix("##") in known for entry in vocabulary)
    assert "涨" in vocabulary  # not in the file: starts at random


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("good 1 2 3\n", "line 1: 3 values, but students.embedding.size is 2"),
        ("good 1 x\n", "line 1: a value is not a number"),
        ("zebra 1 2\n", "a vector for none"),
    ],
)
def test_word_vector_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(StudentError, match=message):
        vectors_of("words", EmbeddingConfig(size=2, start="file", file=path), None)
    broken = tmp_path / "vectors.gz"
    broken.write_text(text)
    with pytest.raises(StudentError, match="not a whole gzip file"):
        vectors_of("words", EmbeddingConfig(size=2, start="file", file=broken), None)
    with pytest.raises(StudentError, match="do not exist"):
        nowhere = EmbeddingConfig(size=2, start="file", file=tmp_path / "nowhere")
        vectors_of("words", nowhere, None)


def test_words_start_from_what_the_teacher_makes_of_them(teacher_folder: Path, tmp_path: Path):
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(teacher_folder / "tokenizer.json")).get_vocab()
    cached = np.random.default_rng(2).normal(size=(len(known), 9)).astype(np.float16)
    write_word_vectors(tmp_path, cached)
    config = EmbeddingConfig(start="words", size=9)
    vocabulary, start = vectors_of("wordpiece", config, teacher_folder, tmp_path)
    words = ["film", "good", "bad", "is"]
    mine = distances(start.vectors[[vocabulary[word] for word in words]])
    theirs = distances(cached[[known[word] for word in words]].astype(np.float32))
    off_diagonal = ~np.eye(4, dtype=bool)
    ratios = mine[off_diagonal] / theirs[off_diagonal]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-2)  # float16 on disk
    with pytest.raises(CacheError, match="run cache-logits again"):
        vectors_of("wordpiece", config, teacher_folder, tmp_path / "empty")
