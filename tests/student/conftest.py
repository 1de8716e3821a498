"""A few sentences, a WordPiece tokenizer for them, and examples made of random ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bert_kd.data.batches import Tokens
from bert_kd.student.train import Examples

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [unused0] the a film is good bad not do don ' t very un ##good "
    "##ly it s wonder ##ful zebra"
).split()


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    """A folder with the tokenizer and token vectors of a BERT, and no model to be loaded."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = dict.fromkeys([*PIECES, *letters, *("##" + letter for letter in letters)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=16)  # as some published tokenizers have it
    tokenizer.enable_truncation(16)
    tokenizer.save(str(folder / "tokenizer.json"))
    vectors = np.random.default_rng(0).normal(size=(len(vocabulary), 12)).astype(np.float32)
    save_file({"bert.embeddings.word_embeddings.weight": vectors}, folder / "model.safetensors")
    return folder


@pytest.fixture
def make_examples() -> Callable[..., Examples]:
    """Return a maker of random rows whose class can be told from their first token."""

    def make(
        rows: int, *, classes: int = 3, pair: bool = False, teacher: bool = True, seed: int = 0
    ) -> Examples:
        generator = np.random.default_rng(seed)

        def side() -> Tokens:
            lengths = generator.integers(1, 9, rows)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            return Tokens(generator.integers(5, 50, offsets[-1]).astype(np.int32), offsets)

        tokens, other = side(), side() if pair else None
        labels = generator.integers(0, classes, rows)
        tokens.ids[tokens.offsets[:-1]] = labels + 2
        logits = None
        if teacher:
            logits = (np.eye(classes)[labels] * 4 - 2).astype(np.float32)
            logits += generator.normal(0, 0.1, logits.shape).astype(np.float32)
        return Examples(tokens, other, labels, logits)

    return make
