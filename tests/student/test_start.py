"""Starting from another student: what is taken over, and what does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, models

from bert_kd.errors import StudentError
from bert_kd.student.model import BiLSTM, Shape, Student
from bert_kd.student.start import start_from

SHAPE = Shape(vocabulary=5, embedding=6, hidden=4, layers=1, pooling="max", dense=3, classes=2)


def tokenizer(*words: str) -> Tokenizer:
    entries = {word: row for row, word in enumerate(("[PAD]", "[UNK]", *words))}
    return Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))


def source(shape: Shape = SHAPE) -> Student:
    torch.manual_seed(1)
    return Student(BiLSTM(shape), tokenizer("good", "bad", "film"), ("a", "b"), "general")


def test_the_lstm_and_the_vectors_of_shared_words_are_taken_over():
    torch.manual_seed(2)
    model = BiLSTM(dataclasses.replace(SHAPE, classes=3))
    own = model.embedding.weight.detach().clone()
    output = model.output.weight.detach().clone()
    given = source()
    assert start_from(model, tokenizer("film", "plot", "good"), given) == 4
    theirs = given.model.embedding.weight
    torch.testing.assert_close(model.embedding.weight[[0, 1, 2, 4]], theirs[[0, 1, 4, 2]])
    torch.testing.assert_close(model.embedding.weight[3], own[3])  # `plot` is new
    torch.testing.assert_close(model.output.weight, output)
    ids, lengths = torch.tensor([[2, 4]]), torch.tensor([2])
    torch.testing.assert_close(
        model.encode(ids, lengths), given.model.encode(torch.tensor([[4, 2]]), lengths)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 8}, r"model\.hidden_size is 4, but 8 in general"),
        ({"embedding": 9}, r"embedding\.size is 6, but 9"),
        ({"layers": 2}, r"model\.layers is 1, but 2"),
    ],
)
def test_other_sizes_are_refused(change: dict[str, int], message: str):
    with pytest.raises(StudentError, match=message):
        start_from(BiLSTM(SHAPE), tokenizer("good"), source(dataclasses.replace(SHAPE, **change)))


def test_another_kind_of_vocabulary_is_refused():
    other = Tokenizer(models.WordLevel({"x": 0, "y": 1}, unk_token="x"))
    with pytest.raises(StudentError, match=r"the same vocabulary\.kind"):
        start_from(BiLSTM(SHAPE), other, source())
