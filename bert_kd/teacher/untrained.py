"""A small BERT of random weights with a WordPiece of your own texts.

For a language or a domain that no pretrained BERT is at hand for, and for tests: it shows the whole
path, and is no good teacher before it has learned a lot.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from bert_kd.store import writing_folder
from bert_kd.teacher.model import quiet


def write_untrained(
    folder: Path,
    texts: Iterable[str],
    *,
    layers: int = 2,
    hidden_size: int = 128,
    vocabulary: int = 8000,
    positions: int = 512,
    seed: int = 17,
) -> None:
    """Write a `BertModel` of random weights and its tokenizer into `folder`, for `teacher.model`.

    A head has 64 units where `hidden_size` allows, the inner layer four times `hidden_size`, as in
    BERT. `texts` train the WordPiece.
    """
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts, vocab_size=vocabulary, show_progress=False)
    pieces = dict(sorted(trained.get_vocab().items(), key=lambda item: item[1]))
    shape = BertConfig(
        vocab_size=len(pieces),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden_size // 64, 1),
        intermediate_size=4 * hidden_size,
        max_position_embeddings=positions,
    )
    torch.manual_seed(seed)
    tokenizer = BertTokenizer(vocab=pieces, do_lower_case=True)
    with writing_folder(folder) as aside, quiet():
        BertModel(shape).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
