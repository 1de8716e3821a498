"""The native runtime's arithmetic in plain numpy, read from `native.safetensors` alone.

What the compiled kernel is compared with: slow, one text at a time, and short enough to be checked
by eye against the layout that `bert_kd.runtime.native.fold` describes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray


def read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors, all as float32 and scaled where they have a scale, and the metadata.

    Parsed by hand: the numpy side of safetensors knows no BF16.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    raw = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        data = content[start:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            kind = {"F32": "<f4", "F16": "<f2", "I8": "i1"}[entry["dtype"]]
            values = np.frombuffer(data, kind).astype(np.float32)
        raw[name] = values.reshape(entry["shape"])
    tensors = {}
    for name, values in raw.items():
        if name.endswith(".scale"):
            continue
        scale = raw.get(f"{name}.scale")
        if scale is not None:
            scale = scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
            values = values * scale
        tensors[name] = values
    return tensors, metadata


class Reference:
    """Answers one text (or pair) at a time."""

    def __init__(self, path: Path) -> None:
        self.tensors, metadata = read(path)
        self.shape: dict[str, Any] = json.loads(metadata["shape"])
        self.int8 = metadata["precision"] == "int8"

    def logits(self, ids: Sequence[int], ids_b: Sequence[int] | None = None) -> Array:
        """Return the logits [classes] of one text's ids."""
        pooled = self.encode(ids, ids_b)
        if ids_b is not None:
            other = self.encode(ids_b, ids)
            pooled = np.concatenate([pooled, other, pooled * other, np.abs(pooled - other)])
        for name in ("dense", "output"):
            if f"{name}.weight" in self.tensors:
                pooled = self.tensors[f"{name}.weight"] @ pooled + self.tensors[f"{name}.bias"]
                pooled = np.maximum(pooled, 0) if name == "dense" else pooled
        return pooled

    def encode(self, ids: Sequence[int], others: Sequence[int] | None) -> Array:
        """Return the pooled states [2 · padded hidden] of one side."""
        rows = self.tensors["table"][list(ids)]  # [length, 2, 4, hidden]
        if "match" in self.tensors and others is not None:
            shared = np.isin(ids, others)[:, None, None, None]
            rows = rows + shared * self.tensors["match"]
        states = rows[:0]
        for layer in range(self.shape["layers"]):
            sides = [f"layers.{layer}.{side}" for side in ("rightward", "leftward")]
            if layer > 0:
                inputs = self.seen(states)
                rows = np.stack(
                    [
                        np.einsum("gok,tk->tgo", self.tensors[f"{side}.input"], inputs)
                        + self.tensors[f"{side}.bias"]
                        for side in sides
                    ],
                    axis=1,
                )
            rightward = self.scan(rows[:, 0], self.tensors[f"{sides[0]}.recurrent"])
            leftward = self.scan(rows[::-1, 1], self.tensors[f"{sides[1]}.recurrent"])[::-1]
            states = np.concatenate([rightward, leftward], axis=1)  # [length, 2 · hidden]
        return self.pool(states)

    def scan(self, rows: Array, recurrent: Array) -> Array:
        """Return the states [length, hidden] of one direction, `rows` [length, 4, hidden]."""
        hidden = np.zeros(recurrent.shape[-1], dtype=np.float32)
        cell = np.zeros_like(hidden)
        states = []
        for row in rows:
            i, f, g, o = row + recurrent @ self.seen(hidden)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            states.append(hidden)
        return np.stack(states).astype(np.float32)

    def seen(self, states: Array) -> Array:
        """Return the states as matrices read them: in int8, whole 127ths."""
        return np.rint(states * np.float32(127)) / np.float32(127) if self.int8 else states

    def pool(self, states: Array) -> Array:
        """Return the pooled states [2 · hidden] of all steps [length, 2 · hidden]."""
        if self.shape["pooling"] == "final":
            half = states.shape[1] // 2
            return np.concatenate([states[-1, :half], states[0, half:]])
        if self.shape["pooling"] == "max":
            return states.max(axis=0)
        if self.shape["pooling"] == "mean":
            return states.mean(axis=0)
        weight, bias = self.tensors["attention.weight"], self.tensors["attention.bias"]
        scores = np.tanh(states) @ weight + bias
        shares = np.exp(scores - scores.max())
        return (shares / shares.sum()) @ states


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))
