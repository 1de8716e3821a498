"""Small students with random weights, and bundles made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bert_kd.config import ExportConfig, VocabularyConfig
from bert_kd.runtime.export import export_bundle
from bert_kd.runtime.native.engine import missing
from bert_kd.student.vocabulary import build_tokenizer

needs_native = pytest.mark.skipif(
    bool(missing()), reason="the native runtime is not built: no C++ compiler was there"
)
ENGINES = [pytest.param("native", marks=needs_native), "onnx"]
WORDS = "the a film was very good bad not so long boring great i liked hated it and , .".split()
LABELS = ("negative", "neutral", "positive")
TEXTS = [
    "the film was very good",
    "bad",
    "",
    "i hated it , it was so long and so very boring . not good , not great , bad .",
    "it was great",
    "zzz qqq",
    "The Film",
]


def make_tokenizer(max_length: int = 32) -> Tokenizer:
    """A word-level tokenizer over `WORDS`."""
    config = VocabularyConfig(kind="words", max_length=max_length)
    return build_tokenizer(config, [" ".join(WORDS)])


def make_student(folder: Path, name: str = "small", **sizes: object) -> Path:
    """Save a student with random weights and these sizes into `folder`."""
    import torch

    from bert_kd.student.model import BiLSTM, Shape, Student, save_student

    torch.manual_seed(3)
    tokenizer = make_tokenizer()
    shape = Shape(
        **{
            "vocabulary": tokenizer.get_vocab_size(),
            "embedding": 12,
            "hidden": 8,
            "layers": 1,
            "pooling": "max",
            "dense": 10,
            "classes": len(LABELS),
            "dropout": 0.3,
            **sizes,
        }
    )
    model = BiLSTM(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # far from zero, so that a swapped gate shows
    labels = LABELS if shape.classes == len(LABELS) else tuple(map(str, range(shape.classes)))
    folder.mkdir(parents=True, exist_ok=True)
    save_student(folder, Student(model, tokenizer, labels, name))
    return folder


def make_bundle(folder: Path, config: ExportConfig | None = None, **sizes: object) -> Path:
    """Export a student of these sizes and return the bundle's folder."""
    student = make_student(folder / "student", **sizes)
    other = TEXTS[::-1] if sizes.get("pair") else None
    export_bundle(student, folder / "bundle", TEXTS, other, config or ExportConfig())
    return folder / "bundle"
