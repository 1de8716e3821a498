"""The student as an ONNX graph, built node by node from its weights.

Here: `build_model`, the same arithmetic as `bert_kd.student.model.BiLSTM` in eval mode, with real
lengths as an input so that padding never changes an answer; `quantise`, the same in int8. Not here:
tracing (`torch.onnx` loses the lengths).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_kd.errors import BundleError, MissingExtra

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError:
    raise MissingExtra("onnx", "runtime") from None

Floats = npt.NDArray[np.float32]

OPSET = 17
IR_VERSION = 8  # what ONNX Runtime ≥ 1.13 reads; onnx itself would write its newest


class _Graph:
    """The nodes and initialisers gathered so far; `add` returns the name of what a node gives."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initialisers: dict[str, Any] = {}

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Store an initialiser once, whoever asks for it, and return its name."""
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        """Return the name of a constant int64 [values]."""
        name = "integers_" + "_".join(str(value) for value in values)
        return self.constant(name, np.asarray(values, dtype=np.int64))


def build_model(
    weights: Mapping[str, Floats], pooling: str, pair: bool, labels: Sequence[str]
) -> Any:
    """Return the checked ONNX model of a student with these weights (the state dict of `BiLSTM`).

    Inputs: `ids` int64 [batch, length], `lengths` int64 [batch], each ≥ 1; for pairs also `ids_b`,
    `lengths_b`. Output: `logits` float32 [batch, classes], in the order of `labels`, which the
    model's metadata holds too.
    """
    graph = _Graph()
    sides = [("ids", "lengths"), ("ids_b", "lengths_b")][: 1 + pair]
    pooled = _encode(graph, weights, pooling, *sides[0], *sides[1:])  # [batch, 2 · hidden]
    inputs = [("ids", ["batch", "length"]), ("lengths", ["batch"])]
    if pair:
        other = _encode(graph, weights, pooling, *sides[1], sides[0])  # [batch, 2 · hidden]
        inputs += [("ids_b", ["batch", "length_b"]), ("lengths_b", ["batch"])]
        product = graph.add("Mul", pooled, other)
        distance = graph.add("Abs", graph.add("Sub", pooled, other))
        pooled = graph.add("Concat", pooled, other, product, distance, axis=1)
    if "dense.weight" in weights:
        pooled = graph.add("Relu", _linear(graph, weights, "dense", pooled))  # [batch, dense]
    _linear(graph, weights, "output", pooled, name="logits")

    classes = len(weights["output.weight"])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "student",
            [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name, dims in inputs],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            list(graph.initialisers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bert_kd",
    )
    helper.set_model_props(model, {"labels": json.dumps(list(labels), ensure_ascii=False)})
    onnx.checker.check_model(model, full_check=True)
    return model


def quantise(model: Any) -> Any:
    """Return the model with its LSTMs in int8, one scale for each row of weights.

    What they read is scaled as it comes, over a whole batch: answers depend a little on the company
    of a text. Not for every CPU: where there is no instruction for bytes (VNNI or the like), ONNX
    Runtime adds pairs of products in 16 bits, which can overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    own = onnx.ModelProto()
    own.CopyFrom(model)
    _separate_weights(own.graph)
    root = logging.getLogger()
    level = root.level
    # It warns of every integer input on the root logger, which would also be set up by that.
    root.addHandler(silent := logging.NullHandler())
    root.setLevel(logging.ERROR)
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            quantize_dynamic(
                own,
                path,
                op_types_to_quantize=["LSTM"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(path)
    finally:
        root.setLevel(level)
        root.removeHandler(silent)


def _separate_weights(graph: Any) -> None:
    """Give every LSTM weights of its own: the quantiser would change shared ones twice."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.op_type != "LSTM" or name not in tensors:
                continue
            if name in seen:
                copy = graph.initializer.add()
                copy.CopyFrom(tensors[name])
                copy.name = node.input[place] = f"{name}_{node.output[0]}"
            seen.add(name)


def _linear(
    graph: _Graph, weights: Mapping[str, Floats], layer: str, value: str, name: str | None = None
) -> str:
    """Append `value @ weightᵀ + bias`."""
    weight = graph.constant(f"{layer}.weight", weights[f"{layer}.weight"])
    bias = graph.constant(f"{layer}.bias", weights[f"{layer}.bias"])
    return graph.add("Gemm", value, weight, bias, name=name, transB=1)


def _encode(
    graph: _Graph,
    weights: Mapping[str, Floats],
    pooling: str,
    ids: str,
    lengths: str,
    other: tuple[str, str] | None = None,
) -> str:
    """Append one side's embedding, LSTM and pooling; returns pooled states [batch, 2 · hidden].

    Time stands first inside, as ONNX's LSTM has it. Both sides of a pair share their initialisers;
    `other` names the other side's ids and lengths.
    """
    steps_first = graph.add("Transpose", ids, perm=[1, 0])  # [length, batch]
    table = graph.constant("embedding.weight", weights["embedding.weight"])
    states = graph.add("Gather", table, steps_first)  # [length, batch, embedding]
    if "match" in weights and other is not None:
        states = graph.add("Add", states, _match(graph, weights, steps_first, *other))
    real_steps = graph.add("Cast", lengths, to=TensorProto.INT32)  # [batch]

    final = ""
    layer = 0
    while f"layers.{layer}.rightward.weight_ih_l0" in weights:
        states, final = _lstm(graph, weights, layer, states, real_steps)
        layer += 1
    if pooling == "final":
        batch_first = graph.add("Transpose", final, perm=[1, 0, 2])  # [batch, 2, hidden]
        return graph.add("Reshape", batch_first, graph.integers(0, -1))  # [batch, 2 · hidden]
    return _pool(graph, weights, pooling, states, _mask(graph, steps_first, lengths), lengths)


def _match(
    graph: _Graph, weights: Mapping[str, Floats], steps_first: str, others: str, lengths: str
) -> str:
    """Append what is added for tokens that stand in the other text, [length, batch, embedding]."""
    mine = graph.add("Unsqueeze", steps_first, graph.integers(1))  # [length, 1, batch]
    theirs = graph.add("Transpose", others, perm=[1, 0])  # [other length, batch]
    equal = graph.add("Equal", mine, graph.add("Unsqueeze", theirs, graph.integers(0)))
    real = graph.add("Squeeze", _mask(graph, theirs, lengths), graph.integers(2))
    found = graph.add("And", equal, graph.add("Unsqueeze", real, graph.integers(0)))
    as_number = graph.add("Cast", found, to=TensorProto.FLOAT)  # [length, other length, batch]
    shared = graph.add("ReduceMax", as_number, axes=[1], keepdims=0)  # [length, batch]
    vector = graph.constant("match", weights["match"])  # [embedding]
    return graph.add("Mul", graph.add("Unsqueeze", shared, graph.integers(2)), vector)


def _lstm(
    graph: _Graph, weights: Mapping[str, Floats], layer: int, states: str, real_steps: str
) -> tuple[str, str]:
    """Append a layer; returns states [length, batch, 2 · hidden] and final [2, batch, hidden]."""
    directions = (f"layers.{layer}.rightward", f"layers.{layer}.leftward")
    product = np.stack([_gates(weights[f"{side}.weight_ih_l0"]) for side in directions])
    recurrent = np.stack([_gates(weights[f"{side}.weight_hh_l0"]) for side in directions])
    biases = np.stack(
        [
            np.concatenate([_gates(weights[f"{side}.bias_{part}_l0"]) for part in ("ih", "hh")])
            for side in directions
        ]
    )
    every, final = (f"{kind}_{len(graph.nodes)}" for kind in ("states", "final"))
    graph.nodes.append(
        helper.make_node(
            "LSTM",
            [
                states,
                graph.constant(f"lstm.W{layer}", product),  # [2, 4 · hidden, input]
                graph.constant(f"lstm.R{layer}", recurrent),  # [2, 4 · hidden, hidden]
                graph.constant(f"lstm.B{layer}", biases),  # [2, 8 · hidden]
                real_steps,
            ],
            [every, final],
            direction="bidirectional",
            hidden_size=recurrent.shape[-1],
        )
    )
    joined = graph.add("Transpose", every, perm=[0, 2, 1, 3])  # [length, batch, 2, hidden]
    return graph.add("Reshape", joined, graph.integers(0, 0, -1)), final


def _gates(rows: Floats) -> Floats:
    """Reorder torch's gates (input, forget, cell, output) as ONNX's (i, o, f, c)."""
    i, f, c, o = np.split(rows, 4)
    return np.concatenate([i, o, f, c])


def _mask(graph: _Graph, steps_first: str, lengths: str) -> str:
    """Append the mask of the real tokens, bool [length, batch, 1]."""
    zero = graph.constant("zero", np.asarray(0, dtype=np.int64))
    one = graph.constant("one", np.asarray(1, dtype=np.int64))
    longest = graph.add("Gather", graph.add("Shape", steps_first), zero)
    steps = graph.add("Range", zero, longest, one)  # [length]
    columns = graph.add("Unsqueeze", steps, graph.integers(1))  # [length, 1]
    return graph.add("Unsqueeze", graph.add("Less", columns, lengths), graph.integers(2))


def _pool(
    graph: _Graph, weights: Mapping[str, Floats], pooling: str, states: str, mask: str, lengths: str
) -> str:
    """Append the pooling of states [length, batch, 2 · hidden] over the real tokens."""
    lowest = graph.constant("lowest", np.asarray(-np.inf, dtype=np.float32))
    if pooling == "max":
        return graph.add(
            "ReduceMax", graph.add("Where", mask, states, lowest), axes=[0], keepdims=0
        )
    if pooling == "mean":
        nothing = graph.constant("nothing", np.asarray(0, dtype=np.float32))
        real = graph.add("Where", mask, states, nothing)
        summed = graph.add("ReduceSum", real, graph.integers(0), keepdims=0)
        counts = graph.add("Cast", lengths, to=TensorProto.FLOAT)  # [batch]
        return graph.add("Div", summed, graph.add("Unsqueeze", counts, graph.integers(1)))
    if pooling == "attention":
        weight = graph.constant("attention.weightT", weights["attention.weight"].T)
        bias = graph.constant("attention.bias", weights["attention.bias"])
        product = graph.add("MatMul", graph.add("Tanh", states), weight)
        scores = graph.add("Where", mask, graph.add("Add", product, bias), lowest)
        shares = graph.add("Softmax", scores, axis=0)  # [length, batch, 1]
        weighted = graph.add("Mul", states, shares)
        return graph.add("ReduceSum", weighted, graph.integers(0), keepdims=0)
    raise BundleError(f"pooling {pooling!r} has no ONNX graph: use final, max, mean or attention")
