"""The teacher's view of each entry of its vocabulary on its own, kept beside its logits.

`words.safetensors` in a cache folder holds `vectors` [vocabulary, size] in float16: the state of
every wordpiece, alone between the special tokens, after the middle encoder layer. Students can
start their embedding from it (as model2vec, Tulkens and van Dongen 2024, does from the last layer).
Not here: asking the teacher (`bert_kd.teacher.words`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bert_kd.errors import CacheError
from bert_kd.store import writing

WORDS = "words.safetensors"
NAME = "vectors"

WordVectors = npt.NDArray[np.float16]


def has_word_vectors(folder: Path) -> bool:
    """Whether the cache in `folder` holds word vectors."""
    return (folder / WORDS).exists()


def write_word_vectors(folder: Path, vectors: WordVectors) -> None:
    """Write `vectors` [vocabulary, size] beside the logits, whole or not at all."""
    with writing(folder / WORDS) as aside:
        save_file({NAME: np.ascontiguousarray(vectors)}, aside)


def read_word_vectors(folder: Path) -> WordVectors:
    """Return the word vectors [vocabulary, size] of the cache in `folder`.

    Raises CacheError where there are none or they are damaged.
    """
    path = folder / WORDS
    if not path.exists():
        raise CacheError(
            f"{folder} holds no word vectors: run cache-logits again, or set embedding.start to "
            '"teacher", "random" or "file"'
        )
    try:
        with safe_open(path, framework="np") as file:
            found: WordVectors = file.get_tensor(NAME)
    except (SafetensorError, OSError) as error:
        raise CacheError(
            f"{path} is damaged ({error}): remove it and run cache-logits again"
        ) from error
    return found
