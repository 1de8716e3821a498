"""A student's weights as the native runtime reads them: the file `native.safetensors`.

The embedding is folded into the first layer's input product: `E @ W_ihᵀ + b_ih + b_hh` is a table
with a row for each token, so that reading a token is a look-up and the recurrence is all that is
left to multiply. Here: the file's layout and how it is written, in constant memory. Not here:
running it (`engine.py`, and the C++ in `src/`).

H is the hidden size, Hp the same rounded up to a multiple of 16; what is added is zero and stays
zero in the recurrence. Gates stand in torch's order (i, f, g, o), directions are rightward and
leftward, P is 2·Hp, of pairs 4 times that. FLOAT is F32, BF16 or I8; I8 has a `<name>.scale` F32
beside it, one for each output, by which its values are to be multiplied.

    table                         [V, 2, 4, Hp]   F16, or I8 with table.scale F32 [V, 2]
    match                         [2, 4, Hp]      F32; added where a token is in the other text, too
    layers.L.DIRECTION.recurrent  [4, Hp, Hp]     FLOAT (gate, unit out, unit in)
    layers.L.DIRECTION.input      [4, Hp, 2·Hp]   FLOAT, from the second layer on
    layers.L.DIRECTION.bias       [4, Hp]         F32, from the second layer on
    attention.weight, .bias       [2·Hp], [1]     F32, of attention pooling
    dense.weight, .bias           [dense, P]      F32, where there is such a layer
    output.weight, .bias          [classes, …]    F32
    tokenizer.pieces, .merges     [bytes]         I8, of `Rules` in `tokenizer.py`, if it has any

Its metadata holds `format`, `precision` and, as JSON, `shape`, `labels` and `tokenizer`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bert_kd.errors import BundleError
from bert_kd.runtime.digests import checksum_of
from bert_kd.runtime.engine import Floats, Precision
from bert_kd.runtime.native.tokenizer import (
    MERGES,
    METADATA,
    PIECES,
    Rules,
    UnsupportedTokenizer,
    read_rules,
)
from bert_kd.store import writing

FORMAT = "1"
UNITS = 16
"""Hidden sizes are padded to a multiple of this: the floats in a vector register."""
ALIGNMENT = 64
"""Of the first tensor in the file, and so of every row of the table: a cache line."""
ROWS_PER_CHUNK = 4096
DIRECTIONS = ("rightward", "leftward")
POOLINGS = ("final", "max", "mean", "attention")

TableType = Literal["fp16", "int8"]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Folded:
    """What was written."""

    bytes: int
    table_bytes: int
    """Of these, the table's (with its scales)."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file, its values in parts, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Values]]


def fold(
    weights: Mapping[str, Floats],
    shape: Mapping[str, Any],
    labels: Sequence[str],
    path: Path,
    precision: Precision,
    table: TableType = "fp16",
    tokenizer: Path | None = None,
) -> Folded:
    """Write `path` from a student's state dict, its `Shape` as a mapping and its labels.

    `tokenizer` is its `tokenizer.json`: where the compiled tokenizer does what that says, its rules
    go into the file, so that nobody has to wait for the JSON.

    Raises BundleError where the weights are such that the file could not stand for them: not
    finite, too large for their type, or of a kind of student that is not known here.
    """
    _check(weights, shape)
    source, rules = _rules(tokenizer)
    tensors = [
        *_table(weights, shape, table),
        *_layers(weights, shape, precision),
        *_head(weights, shape),
        *_tokenizer(rules),
    ]
    # Cache lines first: a tensor whose size is no multiple of one would shift those behind it.
    tensors.sort(key=lambda tensor: _size(tensor) % ALIGNMENT != 0)
    metadata = {
        "format": FORMAT,
        "precision": precision,
        "shape": json.dumps(dict(shape)),
        "labels": json.dumps(list(labels), ensure_ascii=False),
    }
    if rules is not None:
        metadata[METADATA] = json.dumps({"source": source, **rules.options}, ensure_ascii=False)
    with writing(path) as aside:
        _write(aside, tensors, metadata)
        size = aside.stat().st_size
    return Folded(size, sum(_size(each) for each in tensors if each.name.startswith("table")))


def _check(weights: Mapping[str, Floats], shape: Mapping[str, Any]) -> None:
    if shape["pooling"] not in POOLINGS:
        raise BundleError(
            f"pooling {shape['pooling']!r} is not known to the native runtime: use "
            f"{', '.join(POOLINGS)}"
        )
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise BundleError(
                f"the student's {name} holds values that are no numbers: train it again with "
                "--force train-students"
            )


# --- the parts ---------------------------------------------------------------------------------


def _table(
    weights: Mapping[str, Floats], shape: Mapping[str, Any], kind: TableType
) -> Iterator[_Tensor]:
    embedding = weights["embedding.weight"]  # [vocabulary, embedding]
    product = np.concatenate(
        [weights[f"layers.0.{side}.weight_ih_l0"] for side in DIRECTIONS]
    ).T  # [embedding, 2 · 4 · hidden]
    bias = np.concatenate([_bias(weights, 0, side) for side in DIRECTIONS])  # [2 · 4 · hidden]
    rows, hidden = len(embedding), int(shape["hidden"])
    padded = (2, 4, _padded(hidden))
    scales = np.empty((rows, 2), dtype=np.float32)

    def chunks() -> Iterator[tuple[slice, Floats]]:
        for start in range(0, rows, ROWS_PER_CHUNK):
            at = slice(start, start + ROWS_PER_CHUNK)
            with np.errstate(over="ignore", invalid="ignore"):  # seen just below
                folded = _representable(embedding[at] @ product + bias, "table", "fp32")
            yield at, _pad_last(folded.reshape(-1, 2, 4, hidden))

    def halves() -> Iterator[Values]:
        for _, values in chunks():
            with np.errstate(over="ignore"):  # seen just below
                narrow = values.astype(np.float16)
            yield _representable(narrow, "table", "fp16")

    def bytes_() -> Iterator[Values]:
        for at, values in chunks():
            flat, scales[at] = _quantise(values.reshape(len(values), 2, -1))
            yield flat

    yield _Tensor(
        "table",
        "F16" if kind == "fp16" else "I8",
        (rows, *padded),
        halves if kind == "fp16" else bytes_,
    )
    if kind == "int8":
        # Known once the table is written, which stands before it in the file.
        yield _Tensor("table.scale", "F32", (rows, 2), lambda: [scales])
    if "match" in weights:
        match = (weights["match"] @ product).reshape(2, 4, hidden)
        yield _floats("match", _pad_last(match))


def _layers(
    weights: Mapping[str, Floats], shape: Mapping[str, Any], precision: Precision
) -> Iterator[_Tensor]:
    hidden = int(shape["hidden"])
    for layer in range(int(shape["layers"])):
        for side in DIRECTIONS:
            name = f"layers.{layer}.{side}"
            recurrent = weights[f"{name}.weight_hh_l0"].reshape(4, hidden, hidden)
            yield from _matrix(f"{name}.recurrent", _pad_units(_pad_last(recurrent)), precision)
            if layer > 0:
                product = weights[f"{name}.weight_ih_l0"].reshape(4, hidden, 2, hidden)
                joined = _pad_last(product).reshape(4, hidden, -1)  # [4, hidden, 2 · padded]
                yield from _matrix(f"{name}.input", _pad_units(joined), precision)
                bias = _bias(weights, layer, side).reshape(4, hidden)
                yield _floats(f"{name}.bias", _pad_last(bias))


def _head(weights: Mapping[str, Floats], shape: Mapping[str, Any]) -> Iterator[_Tensor]:
    hidden = int(shape["hidden"])

    def pooled(name: str) -> Floats:
        """A matrix whose columns stand for pooled states, with columns for padded units."""
        values = weights[name]
        return _pad_last(values.reshape(len(values), -1, hidden)).reshape(len(values), -1)

    if "attention.weight" in weights:
        yield _floats("attention.weight", pooled("attention.weight")[0])
        yield _floats("attention.bias", weights["attention.bias"])
    first = "dense" if "dense.weight" in weights else "output"
    yield _floats(f"{first}.weight", pooled(f"{first}.weight"))
    yield _floats(f"{first}.bias", weights[f"{first}.bias"])
    if first == "dense":
        yield _floats("output.weight", weights["output.weight"])
        yield _floats("output.bias", weights["output.bias"])


def _matrix(name: str, values: Floats, precision: Precision) -> Iterator[_Tensor]:
    """Yield a matrix [4, units out, units in] in the wanted precision, with its scales."""
    if precision == "fp32":
        yield _floats(name, values)
    elif precision == "bf16":
        yield _fixed(name, "BF16", _bf16(values, name))
    else:
        whole, scale = _quantise(values)
        yield _fixed(name, "I8", whole)
        yield _floats(f"{name}.scale", scale)


def _rules(path: Path | None) -> tuple[str, Rules | None]:
    """Return the checksum of a `tokenizer.json` and the rules in it, None where there are none."""
    if path is None:
        return "", None
    content = path.read_bytes()
    try:
        return checksum_of(content), read_rules(content.decode())
    except UnsupportedTokenizer:
        return "", None


def _tokenizer(rules: Rules | None) -> Iterator[_Tensor]:
    for name, content in ((PIECES, rules.pieces), (MERGES, rules.merges)) if rules else ():
        if content:
            yield _fixed(name, "I8", np.frombuffer(content, dtype=np.int8))


def _bias(weights: Mapping[str, Floats], layer: int, side: str) -> Floats:
    """Return both biases of a direction, which only ever occur as their sum, [4 · hidden]."""
    name = f"layers.{layer}.{side}"
    total: Floats = weights[f"{name}.bias_ih_l0"] + weights[f"{name}.bias_hh_l0"]
    return total


# --- numbers -----------------------------------------------------------------------------------


def _padded(hidden: int) -> int:
    return -(-hidden // UNITS) * UNITS


def _pad_last(values: Floats) -> Floats:
    """Return `values` with zeros behind the last axis, which is hidden units."""
    width = [(0, 0)] * (values.ndim - 1) + [(0, _padded(values.shape[-1]) - values.shape[-1])]
    return np.pad(values, width)


def _pad_units(values: Floats) -> Floats:
    """Return `values` [4, units out, …] with zeros for padded units out."""
    return np.pad(values, [(0, 0), (0, _padded(values.shape[1]) - values.shape[1]), (0, 0)])


def _quantise(values: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return whole numbers from −127 to 127 and the scale of each last axis, symmetric."""
    largest = np.abs(values).max(axis=-1)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    whole = np.rint(values / np.maximum(scale, np.finfo(np.float32).tiny)[..., None])
    return np.clip(whole, -127, 127).astype(np.int8), scale


def _bf16(values: Floats, name: str) -> npt.NDArray[np.uint16]:
    """Return the upper halves of the floats, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    narrow = rounded.astype(np.uint16)
    _representable((narrow.astype(np.uint32) << 16).view(np.float32), name, "bf16")
    return narrow


def _representable(values: Values, name: str, kind: str) -> Values:
    """Return `values` as they are. Raises BundleError where any of them became an infinity."""
    if not np.isfinite(values).all():
        raise BundleError(
            f"the student's {name} holds values too large for {kind}: its weights have diverged; "
            "train it again with --force train-students"
        )
    return values


def _floats(name: str, values: Floats) -> _Tensor:
    return _fixed(name, "F32", np.ascontiguousarray(values, dtype=np.float32))


def _fixed(name: str, dtype: str, values: Values) -> _Tensor:
    return _Tensor(name, dtype, values.shape, lambda: [values])


# --- the file ----------------------------------------------------------------------------------

_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}


def _size(tensor: _Tensor) -> int:
    """Return the bytes of a tensor."""
    return _WIDTHS[tensor.dtype] * math.prod(tensor.shape)


def _write(path: Path, tensors: Sequence[_Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file part by part, which the package itself writes from memory alone."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        end = offset + _size(tensor)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            for part in tensor.parts():
                file.write(np.ascontiguousarray(part).astype(part.dtype.newbyteorder("<")).data)
