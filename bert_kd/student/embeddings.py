"""Start values of the student's embedding: random, word vectors from a file, or from the teacher by
PCA: its token vectors, or what it makes of each word on its own.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from tokenizers import Tokenizer

from bert_kd.config import EmbeddingConfig
from bert_kd.errors import StudentError
from bert_kd.logits.word_vectors import read_word_vectors
from bert_kd.store import read_json
from bert_kd.student.vocabulary import HAN_RUN, PREFIX, SPECIAL

Vectors = npt.NDArray[np.float32]

SPREAD = 0.4
"""Standard deviation of the start values, alike for all starts, so that one learning rate suits
them.
"""

_NAMES = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight")


@dataclass(frozen=True)
class Start:
    """Start values [vocabulary, size] and how many entries found a vector."""

    vectors: Vectors
    found: int


def start_vectors(
    config: EmbeddingConfig,
    tokenizer: Tokenizer,
    teacher: Path | None,
    cache: Path | None,
    seed: int,
    vectors_of: Path | None = None,
) -> Start | None:
    """Return start values for the tokenizer's entries, or None for a random start.

    `teacher` is the teacher's model folder, of which only the tokenizer and the embedding matrix
    are read (the model is never loaded); `cache` holds its word vectors. `vectors_of` is another
    folder to read the embedding matrix from (a twin's: see `untaught`). Raises StudentError where
    the source is missing or does not fit, CacheError where the word vectors are missing.
    """
    if config.start == "random":
        return None
    # In order: the mapping itself comes in another one each time, and sums would differ by it.
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    generator = np.random.default_rng(seed)
    vectors = generator.normal(0.0, 1.0, (len(vocabulary), config.size)).astype(np.float32)
    if config.start == "file":
        assert config.file is not None  # the configuration was checked for it
        found = _read_word_vectors(config.file, vocabulary, config.size)
    else:
        found = _reduced(
            _teacher_vectors(config.start, vocabulary, teacher, cache, vectors_of),
            config.size,
            generator,
        )
    if found:
        rows = np.fromiter(found.keys(), dtype=np.int64)
        values = np.stack(list(found.values()))
        values -= values.mean(axis=0)
        vectors[rows] = values / max(float(values.std()), 1e-6)
    vectors *= SPREAD
    vectors[vocabulary[SPECIAL[0]]] = 0.0
    return Start(vectors, len(found))


def untaught(config: EmbeddingConfig) -> EmbeddingConfig:
    """Return the start of a twin, which has nothing of what the teacher's training brought: not
    what the teacher makes of words, but the token vectors of the model that it was made from.
    """
    return config.model_copy(update={"start": "teacher"}) if config.start == "words" else config


def has_trained_vectors(teacher: Path) -> bool:
    """Whether the token vectors in a teacher's folder were trained on a task, its own or (of a
    model that was taken in as it is) another one.
    """
    facts = read_json(teacher / "teacher.json")
    below = ("embeddings", "below the pooler")  # as the teacher's parts are called
    groups = facts.get("trainable", {}).get("groups", ())
    trained = any(group["trains"] for group in groups if group["name"] in below)
    return trained or not facts.get("fine_tuned", True)


def _teacher_vectors(
    start: str,
    vocabulary: dict[str, int],
    teacher: Path | None,
    cache: Path | None,
    vectors_of: Path | None,
) -> dict[int, Vectors]:
    """Return for each entry the mean of the teacher's vectors of its pieces."""
    remedy = 'set embedding.start = "random"'
    if teacher is None or not (teacher / "tokenizer.json").exists():
        raise StudentError(f"there is no teacher folder to take vectors from: {remedy}")
    if start == "words":
        if cache is None:
            raise StudentError(f"there is no cache of a teacher to take vectors from: {remedy}")
        matrix = read_word_vectors(cache).astype(np.float32)  # [teacher's vocabulary, size]
    else:
        matrix = _embedding_matrix(vectors_of or teacher, remedy)  # [teacher's vocabulary, hidden]
    own = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    own.no_truncation()
    own.no_padding()
    known = own.get_vocab()
    unknown = {known[token] for token in ("[UNK]", "<unk>") if token in known}
    found = {}
    for token, row in vocabulary.items():
        if token in SPECIAL:
            continue
        if token in known:
            pieces = [known[token]]
        else:
            pieces = own.encode(token.removeprefix(PREFIX), add_special_tokens=False).ids
        pieces = [piece for piece in pieces if piece not in unknown]
        if pieces:
            found[row] = matrix[pieces].mean(axis=0)
    return found


def _embedding_matrix(teacher: Path, remedy: str) -> Vectors:
    for file in sorted(teacher.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():
                if name.endswith(_NAMES):
                    return cast(Vectors, tensors.get_tensor(name).astype(np.float32))
    raise StudentError(f"{teacher} holds no token embedding in safetensors: {remedy}")


def _reduced(
    found: dict[int, Vectors], size: int, generator: np.random.Generator
) -> dict[int, Vectors]:
    """Return the vectors on their `size` first principal axes; where they have fewer, noise fills
    the rest.
    """
    if not found:
        return found
    values = np.stack(list(found.values()))
    values = values - values.mean(axis=0)
    _, axes = np.linalg.eigh(values.T @ values)  # rising eigenvalues
    reduced = values @ axes[:, ::-1][:, :size]
    if reduced.shape[1] < size:
        noise = generator.normal(0.0, reduced.std(), (len(reduced), size - reduced.shape[1]))
        reduced = np.concatenate([reduced, noise], axis=1)
    return dict(zip(found.keys(), reduced.astype(np.float32), strict=True))


def _read_word_vectors(path: Path, vocabulary: dict[str, int], size: int) -> dict[int, Vectors]:
    """Return for each entry of the vocabulary that the file knows its vector [size].

    A Chinese entry, the beginning of a word or not, that the file lacks has the mean of the vectors
    of its characters, where all have one.
    """
    chinese = {
        entry: surface
        for entry in vocabulary
        if HAN_RUN.fullmatch(surface := entry.removeprefix(PREFIX))
    }
    wanted = {part for surface in chinese.values() for part in (surface, *surface)}
    found: dict[int, Vectors] = {}
    parts: dict[str, Vectors] = {}  # of Chinese words and characters
    for word, values in _word_vectors(path, size, {*vocabulary, *wanted}):
        row = vocabulary.get(word, vocabulary.get(word.lower()))
        if row is not None and (row not in found or word in vocabulary):
            found[row] = values
        if word in wanted:
            parts[word] = values
    for entry, surface in chinese.items():
        row = vocabulary[entry]
        if row in found:
            continue
        if surface in parts:
            found[row] = parts[surface]
        elif all(character in parts for character in surface):
            found[row] = np.mean([parts[character] for character in surface], axis=0)
    if not found:
        raise StudentError(f"{path} has a vector for none of the {len(vocabulary)} entries")
    return found


def _word_vectors(path: Path, size: int, words: Container[str]) -> Iterator[tuple[str, Vectors]]:
    """Read `word v1 v2 …` lines, a first line `count size` aside; yield those of `words`, which are
    also found by their lower case.
    """
    if not path.is_file():
        raise StudentError(f"the word vectors {path} do not exist: check students.embedding.file")
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        # From the right, as some files hold words with spaces in them.
        parts = line.rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
            continue
        word, values = " ".join(parts[:-size]), parts[-size:]
        if not word or len(parts) < size + 1 or (number < 3 and len(parts) != size + 1):
            raise StudentError(
                f"{path}, line {number}: {len(parts) - 1} values, but students.embedding.size is "
                f"{size}: set it to the file's"
            )
        if word in words or word.lower() in words:
            try:
                yield word, np.array(values, dtype=np.float32)
            except ValueError:
                raise StudentError(f"{path}, line {number}: a value is not a number") from None


def _lines(path: Path) -> Iterator[str]:
    opened = (
        gzip.open(path, "rt", encoding="utf-8", errors="replace")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8", errors="replace")
    )
    try:
        with cast(TextIO, opened) as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StudentError(f"{path} is not a whole gzip file ({error}): fetch it again") from None
