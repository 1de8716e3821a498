"""Vectors of Chinese characters, as THUCNews comes with them, as a file that students start from.

The data's folder holds them as `char_embedding_tencent_200d.npz` (array `embeddings`, [characters,
200]) beside `char_embedding_vocab.txt`, the characters in row order, one a line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from quality_suites import STUDENT, Overrides

from bert_kd.errors import UserError
from bert_kd.store import write_text

VECTORS, CHARACTERS = "char_embedding_tencent_200d.npz", "char_embedding_vocab.txt"
FILE = "character_vectors.txt"
SIZE = 200


def overrides(data: Path | None, work: Path) -> Overrides:
    """Return what lets the student start from the vectors in the folder `data`, once they are
    written into `work`; nothing where there are none.
    """
    if data is None or not (data / VECTORS).exists():
        return ()
    return (
        f"{STUDENT}.embedding.start=file",
        f"{STUDENT}.embedding.file={work / FILE}",
        f"{STUDENT}.embedding.size={SIZE}",
    )


def write_vectors(data: Path | None, work: Path) -> None:
    """Write the vectors in the folder `data`, where there are any, into `work` in word2vec's text
    format: `count size`, then a character and its values a line.

    Blanks and entries that stand for no character (`<UNK>`, `<PAD>`) are left out. Raises UserError
    where vectors and characters do not belong together.
    """
    if data is None or not (data / VECTORS).exists():
        return
    with np.load(data / VECTORS) as arrays:
        values = arrays["embeddings"]  # [characters, size]
    characters = (data / CHARACTERS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if values.shape != (len(characters), SIZE):
        raise UserError(
            f"{data / CHARACTERS} has {len(characters)} lines, and {VECTORS} beside it an array of "
            f"the shape {values.shape}: bring both from the same release of the data"
        )
    lines = [
        " ".join([character, *(f"{value:.6g}" for value in row)])
        for character, row in zip(characters, values.tolist(), strict=True)
        if len(character) == 1 and not character.isspace()
    ]
    write_text(work / FILE, "\n".join([f"{len(lines)} {SIZE}", *lines]) + "\n")
