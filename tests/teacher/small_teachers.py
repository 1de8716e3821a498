"""A BERT of one or two layers from a config, a WordPiece of few words, and rows to match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bert_kd.config import LogitsConfig, TeacherConfig, UnfreezeConfig
from bert_kd.data.keys import row_keys
from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import Rows, write_rows
from bert_kd.store import RunFolder

LABELS = ("bad", "good")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD = ("fine", "great", "lovely", "bright")
BAD = ("poor", "awful", "dull", "broken")
PLAIN = ("the", "a", "film", "was", "and", "so", "very", "play", "##ed", "##s", "today", "here")


def small_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *GOOD, *BAD, *PLAIN))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def exact(**settings: int) -> LogitsConfig:
    """Return how logits are cached where they must not vary with the machine."""
    return LogitsConfig(precision="fp32", **settings)


def small_config(layers: int = 1) -> BertConfig:
    return BertConfig(
        vocab_size=len(SPECIAL) + len(GOOD) + len(BAD) + len(PLAIN),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )


def write_base(folder: Path, layers: int = 1) -> Path:
    """Write a pretrained encoder (without a classification head) and return its folder."""
    torch.manual_seed(3)
    BertModel(small_config(layers)).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def some_texts(rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return distinct texts and their labels: one telling word among plain ones in each."""
    generator = np.random.default_rng(seed)
    texts: dict[str, int] = {}
    while len(texts) < rows:
        label = len(texts) % 2
        words = list(
            generator.choice([w for w in PLAIN if "#" not in w], generator.integers(1, 12))
        )
        words.insert(
            int(generator.integers(len(words) + 1)), str(generator.choice((BAD, GOOD)[label]))
        )
        texts.setdefault(" ".join(words), label)
    return list(texts), np.array(list(texts.values()), dtype=np.int64)


def as_rows(texts: list[str], labels: np.ndarray, texts_b: list[str] | None = None) -> Rows:
    views = np.zeros(len(texts), dtype=np.int16)
    return Rows(row_keys(texts, texts_b), texts, texts_b, labels, views)


def write_data(
    run: RunFolder, splits: dict[str, Rows], labels: tuple[str, ...] = LABELS
) -> Prepared:
    prints = {name: write_rows(run.split(name), [rows]) for name, rows in splits.items()}
    counts = {name: len(rows) for name, rows in splits.items()}
    pair = splits["train"].texts_b is not None
    return Prepared(labels, pair, counts, prints, {})


def small_data(run: RunFolder, train: int = 48) -> Prepared:
    return write_data(
        run,
        {
            "train": as_rows(*some_texts(train, 1)),
            "validation": as_rows(*some_texts(16, 2)),
            "test": as_rows(*some_texts(16, 3)),
        },
    )


def settings(base: Path, **changes: object) -> TeacherConfig:
    given = {"last_layers": changes.pop("last_layers", 1)}
    values: dict[str, object] = {
        "model": str(base),
        "max_length": 16,
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 5e-3,
        "unfreeze": UnfreezeConfig.model_validate(given),
    }
    return TeacherConfig.model_validate({**values, **changes})


def resumable(base: Path) -> TeacherConfig:
    """Return settings of 3 epochs of 6 steps, with a checkpoint every 3 steps, and with all that a
    checkpoint has to bring back: rates of their own for each layer, two random passes a step.
    """
    return settings(
        base,
        epochs=3,
        evaluations_per_epoch=2,
        label_smoothing=0.1,
        last_layers="all",
        layer_decay=0.7,
        r_drop=0.5,
    )
