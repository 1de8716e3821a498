"""The engine that runs everywhere: `model.onnx` in ONNX Runtime, tokenized by `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from bert_kd.data.batches import encode, sorted_batches
from bert_kd.errors import BundleError, MissingExtra
from bert_kd.runtime.engine import Floats, Precision, usable_cores

TOKENS_PER_BATCH = 512
"""Padded tokens of one side in one call of the session."""


class OnnxEngine:
    """A student in ONNX Runtime, on the CPU."""

    name: Literal["onnx"] = "onnx"

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        pair: bool,
        labels: Sequence[str],
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise MissingExtra("onnxruntime", "runtime") from None
        self.precision = precision
        self._tokenizer = tokenizer
        self._classes = len(labels)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        # Idle threads sleep instead of spinning, so that a waiting server leaves the processor to
        # others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what fails is raised; no lines on standard error beside it
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's errors share no base class of their own.
            raise BundleError(
                f"{path} cannot be loaded by ONNX Runtime ({error}): copy or export the bundle "
                "again"
            ) from error
        expected = ["ids", "lengths", "ids_b", "lengths_b"][: 4 if pair else 2]
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [(value.name, value.shape[-1]) for value in self._session.get_outputs()]
        if inputs != expected or outputs != [("logits", len(labels))]:
            raise BundleError(
                f"{path} takes {inputs} and gives {outputs}, not {expected} and logits of "
                f"{len(labels)} classes: it is another bundle's model; copy or export the bundle "
                "again"
            )
        known = self._session.get_modelmeta().custom_metadata_map.get("labels", "null")
        if json.loads(known) != list(labels):
            raise BundleError(
                f"{path} was made for the labels {known}, bundle.json names {', '.join(labels)}: "
                "copy or export the bundle again"
            )
        self._inputs = expected

    def logits(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Floats:
        """Return logits [texts, classes], computed in batches of similar length."""
        sides = [encode(self._tokenizer, side) for side in (texts, texts_b) if side is not None]
        answers = np.empty((len(texts), self._classes), dtype=np.float32)
        lengths = np.max([side.lengths for side in sides], axis=0)  # [texts]
        for rows in sorted_batches(lengths, TOKENS_PER_BATCH):
            arrays = [array for side in sides for array in side.padded(rows)]
            feeds = dict(zip(self._inputs, arrays, strict=True))
            answers[rows] = self._session.run(["logits"], feeds)[0]
        return answers
