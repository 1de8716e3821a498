"""A BERT of random weights: loads as any other, and its WordPiece is that of the texts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_kd.teacher.untrained import write_untrained

TEXTS = ["the film is good", "the film is bad", "酒店很好"] * 3


def test_it_loads_and_answers(tmp_path: Path):
    write_untrained(tmp_path / "m", TEXTS, layers=3, hidden_size=64, vocabulary=200)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert model.config.num_hidden_layers == 3 and model.config.hidden_size == 64
    assert tokenizer.tokenize("The film 酒店") == ["the", "film", "酒", "店"]
    found = model.eval()(**tokenizer("film", "good", return_tensors="pt")).logits
    assert found.shape == (1, 2) and torch.isfinite(found).all()


def test_the_seed_fixes_the_weights(tmp_path: Path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_untrained(tmp_path / name, TEXTS, layers=1, hidden_size=32, vocabulary=200, seed=seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
