"""The ONNX graph answers as torch does, whatever the student's sizes and the padding."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bert_kd.errors import BundleError
from bert_kd.runtime.onnx_graph import build_model
from bert_kd.student.model import BiLSTM, Shape

LENGTHS = [7, 1, 12, 3, 12, 5]
LENGTHS_B = [2, 9, 1, 4, 4, 6]


def make(
    pooling: str, layers: int, dense: int, pair: bool, hidden: int = 6, match: bool = True
) -> BiLSTM:
    torch.manual_seed(5)
    shape = Shape(40, 10, hidden, layers, pooling, dense, 4, pair, pair and match, dropout=0.4)
    model = BiLSTM(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def build(model: BiLSTM) -> onnx.ModelProto:
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    return build_model(weights, model.shape.pooling, model.shape.pair, ["a", "b", "ä", "d"])


def batch(lengths: list[int], width: int, filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids of these lengths, padded with `filler` to `width`."""
    ids = np.random.default_rng(1).integers(1, 40, (len(lengths), width))
    ids[np.arange(width) >= np.asarray(lengths)[:, None]] = filler
    return ids, np.asarray(lengths)


def answer(model: onnx.ModelProto, *arrays: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = ["ids", "lengths", "ids_b", "lengths_b"]
    return session.run(["logits"], dict(zip(names, arrays, strict=False)))[0]


COMBINATIONS = list(
    itertools.product(("final", "max", "mean", "attention"), (1, 2, 3), (0, 9), (False, True))
)


@pytest.mark.parametrize(("pooling", "layers", "dense", "pair"), COMBINATIONS)
def test_equals_torch_on_ragged_batches(pooling, layers, dense, pair):
    model = make(pooling, layers, dense, pair)
    arrays = batch(LENGTHS, 12)
    if pair:
        arrays += batch(LENGTHS_B, 9)
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, arrays)).logits.numpy()

    logits = answer(build(model), *arrays)

    assert logits.dtype == np.float32
    assert np.ptp(expected) > 0.1  # else everything would be close to everything
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["final", "max", "mean", "attention"])
def test_padding_and_what_stands_in_it_change_nothing(pooling):
    graph = build(make(pooling, 2, 9, False))
    narrow = answer(graph, *batch(LENGTHS, 12))
    ids, lengths = batch(LENGTHS, 12)
    wide = np.concatenate([np.where(ids == 0, 39, ids), np.full((len(ids), 20), 38)], axis=1)
    np.testing.assert_allclose(answer(graph, wide, lengths), narrow, atol=1e-5)
    alone = answer(graph, ids[1:2, :1], lengths[1:2])
    np.testing.assert_allclose(alone, narrow[1:2], atol=1e-5)


@pytest.mark.parametrize("hidden", [1, 17])
def test_any_hidden_size(hidden):
    model = make("max", 2, 0, True, hidden)
    arrays = batch(LENGTHS, 12) + batch(LENGTHS_B, 9)
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, arrays)).logits.numpy()
    np.testing.assert_allclose(answer(build(model), *arrays), expected, atol=1e-4)


def test_both_sides_of_a_pair_share_their_weights():
    single, pair = (
        len(build(make("max", 1, 0, pair)).SerializeToString()) for pair in (False, True)
    )
    encoder = 4 * sum(value.numel() for value in make("max", 1, 0, False, 32).parameters())
    assert pair < single + encoder / 2


def test_says_its_labels():
    properties = {
        entry.key: entry.value for entry in build(make("max", 1, 0, False)).metadata_props
    }
    assert properties == {"labels": '["a", "b", "ä", "d"]'}


def test_unknown_pooling_is_refused():
    model = make("max", 1, 0, False)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    with pytest.raises(BundleError, match="pooling 'median'"):
        build_model(weights, "median", False, ["a", "b", "c", "d"])
