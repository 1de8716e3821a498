"""What the teacher makes of each entry of its vocabulary on its own.

Each wordpiece goes through the model alone, between the special tokens that stand around any text;
its state after the middle layer is kept: the first layers know little more than the word's form,
the last, once they were fine-tuned, little more than the classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bert_kd.logits.word_vectors import WordVectors
from bert_kd.progress import progress
from bert_kd.teacher.answer import Precision
from bert_kd.teacher.model import Teacher

BATCH = 512


def word_vectors(teacher: Teacher, precision: Precision = "fp32") -> WordVectors:
    """Return the states [vocabulary, size] of all entries, in the order of their ids.

    Ids that the tokenizer leaves free are zero.
    """
    encoder = teacher.model.base_model
    encoder.eval()
    device = next(encoder.parameters()).device
    tokenizer = teacher.tokenizer
    ids = np.array(sorted(set(tokenizer.get_vocab().values())))
    before, after = _around(teacher)
    vectors: WordVectors | None = None
    with progress("the teacher's word vectors", len(ids), "wordpieces") as advance:
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            rows = np.array([[*before, piece, *after] for piece in part.tolist()])
            inputs = torch.from_numpy(rows).to(device)  # [batch, length]
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                states: tuple[Tensor, ...] = encoder(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    output_hidden_states=True,
                ).hidden_states  # (layers + 1) × [batch, length, size]
            found = states[len(states) // 2][:, len(before)]  # [batch, size]
            if vectors is None:
                vectors = np.zeros((int(ids[-1]) + 1, found.shape[1]), dtype=np.float16)
            vectors[part] = found.float().cpu().numpy()
            advance(len(part))
    assert vectors is not None  # a tokenizer has entries
    return vectors


def _around(teacher: Teacher) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after a text."""
    tokenizer = teacher.tokenizer
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(at for at in range(len(whole) + 1) if whole[at : at + len(inner)] == inner)
    return list(whole[:start]), list(whole[start + len(inner) :])
