"""A loaded bundle that answers: texts in, labels and scores out, without torch or transformers.

Here: `load`, which chooses the engine, and `Predictor`, whose answers have the shapes of
transformers' text-classification pipeline. Not here: the engines, files of texts (`bulk.py`) and
HTTP (`bert_kd.serve`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bert_kd.errors import BundleError, DataError
from bert_kd.runtime.bundle import MODELS, TOKENIZER, Bundle, read_bundle, read_whole
from bert_kd.runtime.bundle import verify as verify_files
from bert_kd.runtime.engine import Engine, EngineName, Floats, read_tokenizer
from bert_kd.runtime.native import engine as native

Text = str | Mapping[str, str]
"""A text, or `{"text": …, "text_pair": …}`."""
Engines = Literal["auto", "native", "onnx"]

ROWS_PER_CHUNK = 8192
"""Texts given to the engine together: bounds memory, and is enough to be sorted by length well."""
MOST_THREADS = 1024
UNSET: Any = ""
"""`top_k` not given, which the pipeline answers in another shape than `top_k=1`."""


def load(
    bundle: Path | str, engine: Engines = "auto", threads: int | None = None, verify: bool = True
) -> Predictor:
    """Return the predictor of the bundle in folder `bundle`.

    `engine`: "auto" is the native runtime where it is installed and the bundle holds a model for
    it, else ONNX Runtime. `threads`: CPU threads of the model, None: one for each core that this
    process may use. `verify` compares the files that the engine reads with the checksums in
    `bundle.json`; their structure is always checked. A bundle that is replaced meanwhile, by
    renaming as `bert-kd export` does, is read again. Raises BundleError where the bundle is
    missing, damaged, foreign, or has no such engine, or `threads` is no number of threads;
    MissingExtra where ONNX Runtime is needed and not installed.
    """
    if engine not in ("auto", "native", "onnx"):
        raise BundleError(f"there is no engine {engine!r}: use 'auto', 'native' or 'onnx'")
    if threads is not None and not _is_count(threads):
        raise BundleError(
            f"threads is {threads!r}: give a whole number from 1 to {MOST_THREADS}, or None for "
            "all cores"
        )
    count = None if threads is None else operator.index(threads)

    def read() -> Predictor:
        facts = read_bundle(bundle)
        chosen = _choose(facts, engine)
        verify_files(facts, (MODELS[chosen], TOKENIZER), digests=verify)
        return Predictor(facts, _open(facts, chosen, count), count)

    predictor, _ = read_whole(Path(bundle), read)
    return predictor


def _is_count(threads: Any) -> bool:
    return _is_whole(threads) and 1 <= threads <= MOST_THREADS


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's; True is none here."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _choose(bundle: Bundle, wanted: Engines) -> EngineName:
    """Return the engine to answer with. Raises BundleError where the wanted one can't."""
    if wanted == "auto":
        return "native" if "native" in bundle.runtimes and not native.missing() else "onnx"
    if wanted not in bundle.runtimes:
        raise BundleError(
            f"the bundle {bundle.name!r} holds no model for the {wanted} engine: export the "
            "student again, or use engine='auto'"
        )
    if wanted == "native" and (why := native.missing()):
        raise BundleError(f"{why}; or use engine='onnx'")
    return wanted


def _open(bundle: Bundle, name: EngineName, threads: int | None) -> Engine:
    path, tokenizer = bundle.folder / MODELS[name], bundle.folder / TOKENIZER
    if name == "native":
        return native.NativeEngine(path, tokenizer, bundle.shape, bundle.labels, threads)
    # Deferred, so that the native engine does not wait for what only this one needs.
    from bert_kd.runtime.onnx_engine import OnnxEngine

    return OnnxEngine(
        path,
        read_tokenizer(tokenizer, int(bundle.shape["vocabulary"])),
        bundle.pair,
        bundle.labels,
        bundle.runtimes[name].precision,
        threads,
    )


@dataclass(frozen=True)
class Predictor:
    """Answers texts with labels and scores. Safe to call from several threads at once.

    Pickled or copied it is the bundle's folder, loaded again: a pool of processes may take it.
    """

    bundle: Bundle
    engine: Engine
    threads: int | None = None
    """As `load` was asked for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.bundle.folder.absolute(), self.engine.name, self.threads)

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
            if not _is_whole(top_k):
                raise TypeError(f"top_k is {top_k!r}: give a number, or None for all labels")
            if top_k < 1:
                raise ValueError(f"top_k is {top_k}: give 1 or more, or None for all labels")
        single = isinstance(inputs, str) or isinstance(inputs, Mapping)
        rows: Any = [inputs] if single else inputs
        if not isinstance(rows, list | tuple):
            raise TypeError(
                f"inputs is a {type(inputs).__name__}: give a text, a dict with 'text' and "
                "'text_pair', or a list of these"
            )
        logits = self.logits(*self._split(rows, single))  # [rows, classes]
        if top_k is UNSET:
            best = [self._best(row) for row in logits.tolist()]
            return best[0] if single and not isinstance(inputs, str) else best
        ranked = [self._ranked(row, top_k) for row in logits.tolist()]
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
        if type(texts) is not list:
            _require_list(texts, "texts")
        if texts_b is not None and type(texts_b) is not list:
            _require_list(texts_b, "texts_b")
        if texts_b is not None and len(texts_b) != len(texts):
            raise DataError(f"{len(texts)} texts stand beside {len(texts_b)} second texts")
        try:
            if 0 < len(texts) <= ROWS_PER_CHUNK:
                return self.engine.logits(texts, texts_b)
            answers = np.empty((len(texts), len(self.labels)), dtype=np.float32)
            for start in range(0, len(texts), ROWS_PER_CHUNK):
                rows = slice(start, start + ROWS_PER_CHUNK)
                other = texts_b[rows] if texts_b is not None else None
                answers[rows] = self.engine.logits(texts[rows], other)
            return answers
        except (TypeError, UnicodeEncodeError):
            _require_texts(texts)
            _require_texts(() if texts_b is None else texts_b)
            raise

    def probabilities(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Floats:
        """Return the softmax of `logits`, float32 [rows, classes]."""
        logits = self.logits(texts, texts_b)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        scores: Floats = powers / powers.sum(axis=-1, keepdims=True)
        return scores

    def _split(self, rows: Sequence[Text], single: bool) -> tuple[list[str], list[str] | None]:
        """Return the texts and, where the rows hold any, the second texts."""
        texts: list[str] = []
        texts_b: list[str] = []
        for position, row in enumerate(rows):
            if isinstance(row, str):
                texts.append(row)
                continue
            where = "inputs" if single else f"inputs[{position}]"
            if isinstance(row, Mapping):
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

    def _best(self, logits: list[float]) -> dict[str, Any]:
        """Return the most probable label and its score."""
        largest = max(logits)
        # Python's own floats: for a handful of classes, numpy would take longer than the model.
        score = 1.0 / sum([math.exp(value - largest) for value in logits])
        return {"label": self.labels[logits.index(largest)], "score": score}

    def _ranked(self, logits: list[float], top_k: int | None) -> list[dict[str, Any]]:
        """Return the `top_k` best labels with scores, best first; ties keep the labels' order."""
        largest = max(logits)
        total = sum([math.exp(value - largest) for value in logits])
        order = sorted(range(len(logits)), key=lambda at: -logits[at])[:top_k]
        return [
            {"label": self.labels[at], "score": math.exp(logits[at] - largest) / total}
            for at in order
        ]


def _require_list(texts: Any, name: str) -> None:
    """Raise TypeError where `texts` is nothing that has a length and an order, as a list has."""
    if isinstance(texts, str):
        raise TypeError(f"{name} is one string: give a list of texts")
    ordered = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if not ordered or isinstance(texts, Mapping) or getattr(texts, "ndim", 1) != 1:
        raise TypeError(f"{name} is a {type(texts).__name__}: give a list of texts")


def _require_texts(texts: Sequence[Any]) -> None:
    """Raise TypeError or DataError naming the first that is no text."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {position} is a {type(text).__name__}, not a string") from None
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {position} is not valid Unicode ({error}): it holds half of a surrogate pair"
            ) from None


def _string(value: Any, where: str) -> str:
    """Return `value` where it is a string. Raises TypeError naming `where`."""
    if not isinstance(value, str):
        raise TypeError(f"{where} is a {type(value).__name__}, not a string")
    return value
