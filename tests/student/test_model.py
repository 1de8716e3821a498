"""The network: padding changes nothing, every part learns, folders come back as they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from bert_kd.errors import StudentError
from bert_kd.student.model import (
    POOLINGS,
    BiLSTM,
    Shape,
    Student,
    count_parameters,
    load_student,
    save_student,
)

SHAPE = Shape(
    vocabulary=20, embedding=6, hidden=5, layers=1, pooling="max", dense=32, classes=3, dropout=0.0
)


def shapes() -> list[Shape]:
    return [
        dataclasses.replace(
            SHAPE, pooling=pooling, layers=layers, pair=pair, match=pair, dense=dense
        )
        for pooling in POOLINGS
        for layers in (1, 2)
        for pair in (False, True)
        for dense in (0, 32)
    ]


def batch(pair: bool, extra: int = 0):
    """Three rows of lengths 4, 1 and 3, padded by `extra` more tokens that must not count."""
    torch.manual_seed(1)
    ids = torch.randint(1, 20, (3, 4))
    ids_b = torch.randint(1, 20, (3, 4))
    ids_b[0, 0] = ids[0, 0]
    noise = torch.randint(1, 20, (3, extra))
    first = torch.cat([ids, noise], dim=1), torch.tensor([4, 1, 3])
    return (*first, torch.cat([ids_b, noise], dim=1), torch.tensor([2, 4, 1])) if pair else first


@pytest.mark.parametrize("shape", shapes(), ids=str)
def test_padding_changes_nothing(shape: Shape):
    model = BiLSTM(shape).eval()
    alone = [
        model(*(side[row : row + 1, :length] if side.ndim == 2 else side[row : row + 1]
                for side, length in _with_lengths(batch(shape.pair), row)))
        for row in range(3)
    ]  # fmt: skip
    together = model(*batch(shape.pair))
    padded = model(*batch(shape.pair, extra=5))
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]))
    torch.testing.assert_close(padded.logits, together.logits)
    torch.testing.assert_close(padded.pooled, together.pooled)
    assert together.pooled.shape == (3, shape.pooled)


def _with_lengths(sides, row):
    """Pair each tensor of a batch with the real length of its side in this row."""
    return [(side, int(sides[index | 1][row])) for index, side in enumerate(sides)]


@pytest.mark.parametrize("shape", shapes(), ids=str)
def test_gradients_reach_every_parameter(shape: Shape):
    torch.manual_seed(5)
    model = BiLSTM(shape)
    model(*batch(shape.pair)).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name == "attention.bias":  # softmax does not see it
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_poolings_by_hand():
    states = {}
    for pooling in POOLINGS:
        torch.manual_seed(3)
        model = BiLSTM(dataclasses.replace(SHAPE, pooling=pooling)).eval()
        ids = torch.tensor([[3, 7, 5]])
        (layer,), vectors = model.layers, model.embedding(ids)
        rightward, (last, _) = layer.rightward(vectors)
        leftward, (first, _) = layer.leftward(vectors.flip(1))
        hidden = torch.cat([rightward, leftward.flip(1)], dim=-1)
        final = torch.cat([last[0, 0], first[0, 0]])
        states[pooling] = model(ids, torch.tensor([3])).pooled[0], hidden[0], final, model
    pooled, hidden, *_ = states["max"]
    torch.testing.assert_close(pooled, hidden.max(dim=0).values)
    pooled, hidden, *_ = states["mean"]
    torch.testing.assert_close(pooled, hidden.mean(dim=0))
    pooled, hidden, final, _ = states["final"]
    torch.testing.assert_close(pooled, final)
    pooled, hidden, _, model = states["attention"]
    weights = torch.softmax(model.attention(torch.tanh(hidden))[:, 0], dim=0)
    torch.testing.assert_close(pooled, weights @ hidden)


def test_a_pair_is_u_v_product_difference():
    model = BiLSTM(dataclasses.replace(SHAPE, pair=True)).eval()
    ids, lengths, ids_b, lengths_b = batch(pair=True)
    u, v = model.encode(ids, lengths), model.encode(ids_b, lengths_b)
    pooled = model(ids, lengths, ids_b, lengths_b).pooled
    torch.testing.assert_close(pooled, torch.cat([u, v, u * v, (u - v).abs()], dim=1))
    with pytest.raises(StudentError, match="two texts"):
        model(ids, lengths)


def test_tokens_of_the_other_text_are_marked():
    model = BiLSTM(dataclasses.replace(SHAPE, pair=True, match=True)).eval()
    ids, lengths = torch.tensor([[4, 9, 7]]), torch.tensor([3])
    marked = model.embedding(ids) + torch.tensor([[0.0, 1.0, 1.0]])[:, :, None] * model.match
    (layer,) = model.layers
    expected = layer(marked, torch.tensor([[2, 1, 0]])).amax(dim=1)
    others, length = torch.tensor([[7, 7, 9, 4]]), torch.tensor([3])  # the 4 is padding
    torch.testing.assert_close(model.encode(ids, lengths, others, length), expected)


def test_word_dropout_shows_tokens_as_unknown_in_training_alone():
    shape = dataclasses.replace(SHAPE, word_dropout=0.5)
    torch.manual_seed(3)
    model = BiLSTM(shape)
    seen: list[torch.Tensor] = []
    model.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ids, lengths = torch.full((200, 6), 2), torch.tensor([4] * 200)
    ids[:, 4:] = 0
    with torch.no_grad():
        first = model.train()(ids, lengths).logits
        assert not torch.equal(first, model(ids, lengths).logits)
        plain = model.eval()(ids, lengths).logits
        assert torch.equal(plain, model(ids, lengths).logits)
    for shown in seen[:2]:
        assert 0.4 < (shown[:, :4] == 1).float().mean() < 0.6  # of 800 tokens
        assert (shown[:, 4:] == 0).all()  # padding stays what it is
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], ids)


def test_parameters_are_counted_with_and_without_embedding():
    total, without = count_parameters(BiLSTM(SHAPE))
    lstm = 2 * 4 * 5 * (6 + 5 + 2)
    assert without == lstm + (10 * 32 + 32) + (32 * 3 + 3)
    assert total == without + 20 * 6


def student() -> Student:
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    return Student(BiLSTM(SHAPE).eval(), tokenizer, ("x", "y", "z"), "base", {"seed": 3})


def test_a_folder_comes_back_as_it_was(tmp_path: Path):
    given = student()
    save_student(tmp_path, given)
    found = load_student(tmp_path)
    assert (found.shape, found.labels, found.name, found.facts) == (
        given.shape,
        given.labels,
        given.name,
        given.facts,
    )
    torch.testing.assert_close(found.model(*batch(False)), given.model(*batch(False)))
    assert found.tokenizer.to_str() == given.tokenizer.to_str()


def test_missing_and_damaged_folders_are_refused(tmp_path: Path):
    with pytest.raises(StudentError, match="train-students"):
        load_student(tmp_path / "nowhere")
    save_student(tmp_path, student())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(StudentError, match="--force train-students"):
        load_student(tmp_path)
