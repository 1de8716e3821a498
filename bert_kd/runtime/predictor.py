"""A loaded bundle that answers: texts in, labels and scores out, without torch or transformers.

Here: `load` and `Predictor`, whose answers have the shapes of transformers' text-classification
pipeline, and the ONNX Runtime engine below it. Not here: files of texts (`bulk.py`) and HTTP
(`bert_kd.serve`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bert_kd.data.batches import Ints, Tokens, encode, sorted_batches
from bert_kd.errors import BundleError, DataError, MissingExtra
from bert_kd.runtime.bundle import MODEL, TOKENIZER, Bundle, read_bundle

Floats = npt.NDArray[np.float32]
Text = str | Mapping[str, str]
"""A text, or `{"text": …, "text_pair": …}`."""
Engines = Literal["auto", "onnx", "native"]

ROWS_PER_CHUNK = 8192
"""Texts tokenised and sorted together: bounds memory, and is enough to leave little padding."""
TOKENS_PER_BATCH = 512
"""Padded tokens of one side in one call of the engine."""
UNSET: Any = ""
"""`top_k` not given, which the pipeline answers in another shape than `top_k=1`."""


class Engine(Protocol):
    """What turns token ids into logits. Safe to call from several threads."""

    name: str

    def logits(
        self, ids: Ints, lengths: Ints, ids_b: Ints | None = None, lengths_b: Ints | None = None
    ) -> Floats:
        """Return logits [batch, classes] of padded `ids` [batch, length] with `lengths` [batch]."""


class OnnxEngine:
    """`model.onnx` in ONNX Runtime, on the CPU."""

    name = "onnx"

    def __init__(
        self, path: Path, bundle_pair: bool, labels: Sequence[str], threads: int | None
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise MissingExtra("onnxruntime", "runtime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: one for each physical core
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
        expected = ["ids", "lengths", "ids_b", "lengths_b"][: 4 if bundle_pair else 2]
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

    def logits(
        self, ids: Ints, lengths: Ints, ids_b: Ints | None = None, lengths_b: Ints | None = None
    ) -> Floats:
        """Return logits [batch, classes] of padded `ids` [batch, length] with `lengths` [batch]."""
        feeds = {"ids": ids, "lengths": lengths}
        if ids_b is not None and lengths_b is not None:
            feeds |= {"ids_b": ids_b, "lengths_b": lengths_b}
        logits: Floats = self._session.run(["logits"], feeds)[0]
        return logits


def load(
    bundle: Path | str, engine: Engines = "auto", threads: int | None = None, verify: bool = True
) -> Predictor:
    """Return the predictor of the bundle in folder `bundle`.

    `threads`: CPU threads of the model, None: one for each physical core. `verify` compares the
    files with their SHA-256. Raises BundleError where the bundle is missing, damaged, foreign, or
    has no such engine; MissingExtra where ONNX Runtime is not installed.
    """
    if engine == "native":
        raise BundleError(
            "this version of bert_kd has no native engine: use engine='onnx' or engine='auto'"
        )
    if engine not in ("auto", "onnx"):
        raise BundleError(f"there is no engine {engine!r}: use 'auto' or 'onnx'")
    if threads is not None and threads < 1:
        raise BundleError(f"threads is {threads}: give 1 or more, or None for all cores")
    facts = read_bundle(bundle, verify)
    tokenizer = _read_tokenizer(facts)
    onnx = OnnxEngine(facts.folder / MODEL, facts.pair, facts.labels, threads)
    return Predictor(facts, tokenizer, onnx)


def _read_tokenizer(bundle: Bundle) -> Tokenizer:
    """Return the bundle's tokenizer, checked to fit its embedding."""
    path = bundle.folder / TOKENIZER
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        # `tokenizers` raises plain Exception.
        raise BundleError(
            f"{path} cannot be read as a tokenizer ({error}): copy or export the bundle again"
        ) from error
    size, rows = tokenizer.get_vocab_size(), int(bundle.shape["vocabulary"])
    if size > rows:
        raise BundleError(
            f"{path} knows {size} tokens and the model {rows}: it is another bundle's tokenizer; "
            "copy or export the bundle again"
        )
    return tokenizer


@dataclass(frozen=True)
class Predictor:
    """Answers texts with labels and scores. Safe to call from several threads at once."""

    bundle: Bundle
    tokenizer: Tokenizer
    engine: Engine

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `logits` and `probabilities`."""
        return self.bundle.labels

    @property
    def pair(self) -> bool:
        """Whether it compares two texts."""
        return self.bundle.pair

    def __call__(self, inputs: Text | Sequence[Text], top_k: int | None = UNSET) -> Any:
        """Return labels and scores in the shapes of transformers' text-classification pipeline.

        | `inputs`                | `top_k` not given     | `top_k=k`, best first (None: all) |
        | a text                  | `[{label, score}]`    | `[{label, score}, …]`             |
        | `{"text", "text_pair"}` | `{label, score}`      | `[{label, score}, …]`             |
        | a list of either        | `[{label, score}, …]` | `[[{label, score}, …], …]`        |

        A bundle of pairs takes `{"text": …, "text_pair": …}`. Raises TypeError for what is none of
        these, BundleError for single texts where pairs are needed and the reverse.
        """
        if top_k is not UNSET and top_k is not None:
            if not isinstance(top_k, int) or isinstance(top_k, bool):
                raise TypeError(f"top_k is {top_k!r}: give a number, or None for all labels")
            if top_k < 1:
                raise ValueError(f"top_k is {top_k}: give 1 or more, or None for all labels")
        single = isinstance(inputs, str | Mapping)
        rows = [inputs] if isinstance(inputs, str | Mapping) else inputs
        if not isinstance(rows, list | tuple):
            raise TypeError(
                f"inputs is a {type(inputs).__name__}: give a text, a dict with 'text' and "
                "'text_pair', or a list of these"
            )
        texts, texts_b = self._split(rows, single)
        probabilities = self.probabilities(texts, texts_b)  # [rows, classes]
        if top_k is UNSET:
            best = [self._best(row) for row in probabilities]
            return best[0] if isinstance(inputs, Mapping) else best
        ranked = [self._ranked(row, top_k) for row in probabilities]
        return ranked[0] if single else ranked

    def logits(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Floats:
        """Return logits, float32 [rows, classes], in the order of `texts` (and of `texts_b`).

        A text without tokens is answered as one unknown token. Memory is bounded by the answers,
        whatever the number of texts. Raises TypeError where a text is no string, DataError where it
        is not valid Unicode, BundleError where pairs are needed and not given or the reverse.
        """
        if self.pair and texts_b is None:
            raise BundleError(
                f"the bundle {self.bundle.name!r} compares two texts, and one was given: "
                "give {'text': …, 'text_pair': …}, or texts_b"
            )
        if not self.pair and texts_b is not None:
            raise BundleError(
                f"the bundle {self.bundle.name!r} reads single texts, and a pair was given: leave "
                "the second text out"
            )
        if isinstance(texts, str) or isinstance(texts_b, str):
            raise TypeError("texts is one string: give a list of texts")
        if texts_b is not None and len(texts_b) != len(texts):
            raise DataError(f"{len(texts)} texts stand beside {len(texts_b)} second texts")
        answers = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(texts), ROWS_PER_CHUNK):
            rows = slice(start, start + ROWS_PER_CHUNK)
            tokens = self._encode(texts[rows], start)
            tokens_b = self._encode(texts_b[rows], start) if texts_b is not None else None
            answers[rows] = self._answer(tokens, tokens_b)
        return answers

    def probabilities(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Floats:
        """Return the softmax of `logits`, float32 [rows, classes]."""
        logits = self.logits(texts, texts_b)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        scores: Floats = powers / powers.sum(axis=-1, keepdims=True)
        return scores

    def _answer(self, tokens: Tokens, tokens_b: Tokens | None) -> Floats:
        """Return the logits [rows, classes] of one chunk, computed in batches of similar length."""
        answers = np.empty((len(tokens), len(self.labels)), dtype=np.float32)
        lengths = tokens.lengths
        if tokens_b is not None:
            lengths = np.maximum(lengths, tokens_b.lengths)
        for rows in sorted_batches(lengths, TOKENS_PER_BATCH):
            other = tokens_b.padded(rows) if tokens_b is not None else ()
            answers[rows] = self.engine.logits(*tokens.padded(rows), *other)
        return answers

    def _encode(self, texts: Sequence[str], first: int) -> Tokens:
        """Return the tokens of `texts`; `first` is the position of the first one, for messages."""
        try:
            return encode(self.tokenizer, texts)
        except TypeError:
            for position, text in enumerate(texts, start=first):
                if not isinstance(text, str):
                    raise TypeError(
                        f"text {position} is a {type(text).__name__}, not a string"
                    ) from None
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"text {position} is not valid Unicode ({error}): it holds half of a "
                        "surrogate pair"
                    ) from None
            raise

    def _split(self, rows: Sequence[Text], single: bool) -> tuple[list[str], list[str] | None]:
        """Return the texts and, where the rows hold any, the second texts."""
        texts: list[str] = []
        texts_b: list[str] = []
        for position, row in enumerate(rows):
            where = "inputs" if single else f"inputs[{position}]"
            if isinstance(row, str):
                texts.append(row)
            elif isinstance(row, Mapping):
                if not row.keys() <= {"text", "text_pair"} or "text" not in row:
                    raise TypeError(
                        f"{where} has the keys {list(row)}: give 'text' and, for pairs, 'text_pair'"
                    )
                texts.append(_string(row["text"], f"{where}['text']"))
                if row.get("text_pair") is not None:
                    texts_b.append(_string(row["text_pair"], f"{where}['text_pair']"))
            else:
                raise TypeError(
                    f"{where} is a {type(row).__name__}: give a text, or a dict with 'text' and "
                    "'text_pair'"
                )
        if texts_b and len(texts_b) < len(texts):
            raise BundleError(
                f"{len(texts_b)} of {len(texts)} inputs are pairs: give pairs or single texts"
            )
        # No rows at all are no pairs that a bundle of pairs could miss.
        return texts, texts_b if texts_b or (self.pair and not texts) else None

    def _best(self, probabilities: Floats) -> dict[str, Any]:
        """Return the most probable label and its score."""
        best = int(probabilities.argmax())
        return {"label": self.labels[best], "score": float(probabilities[best])}

    def _ranked(self, probabilities: Floats, top_k: int | None) -> list[dict[str, Any]]:
        """Return the `top_k` best labels with scores, best first; ties keep the labels' order."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [{"label": self.labels[at], "score": float(probabilities[at])} for at in order]


def _string(value: Any, where: str) -> str:
    """Return `value` where it is a string. Raises TypeError naming `where`."""
    if not isinstance(value, str):
        raise TypeError(f"{where} is a {type(value).__name__}, not a string")
    return value
