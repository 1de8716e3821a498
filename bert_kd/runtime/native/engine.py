"""The engine for the compiled runtime: texts to logits in one call, without Python's lock.

What the native tokenizer does not answer with certainty (rare Unicode, mostly) it hands back; those
texts go through `tokenizers`, and their ids to the same kernel. Here: opening a bundle's file, and
telling in words why one can't be opened. Not here: the kernel and the tokenizer, which are C++
(`src/`), and writing the file (`fold.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from bert_kd.errors import BundleError
from bert_kd.runtime.engine import (
    Floats,
    Precision,
    check_vocabulary,
    read_tokenizer,
    unreadable_tokenizer,
)
from bert_kd.runtime.native.tokenizer import UnsupportedTokenizer, compile_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bert_kd.runtime.native import _native


def missing() -> str | None:
    """Return why the compiled runtime is not there and how to get it, or None where it is."""
    try:
        from bert_kd.runtime.native import _native  # noqa: F401
    except ImportError as error:
        return (
            f"the native runtime is not installed ({error}): install bert_kd where there is a "
            "C++17 compiler (GCC or Clang), which builds it"
        )
    return None


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


class NativeEngine:
    """A student in the compiled runtime."""

    name: Literal["native"] = "native"

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        shape: Mapping[str, Any],
        labels: Sequence[str],
        threads: int | None = None,
        instruction_set: str | None = None,
    ) -> None:
        """Open `path` (`native.safetensors`) and `tokenizer` (`tokenizer.json`) of a bundle with
        this shape and these labels. `instruction_set`: None for the fastest that the CPU has.

        Raises BundleError where a file is damaged or another bundle's.
        """
        from bert_kd.runtime.native import _native

        try:
            self._model = _native.Model(os.fsencode(path), instruction_set)
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                f"{path} cannot be loaded by the native runtime ({error}): copy or export the "
                "bundle again"
            ) from None
        _check(self._model, path, shape, labels)
        self.precision = cast(Precision, self._model.precision)
        self._threads = threads or usable_cores()
        self._path = path
        self._tokenizer_path = tokenizer
        self._rows = int(shape["vocabulary"])
        self._compiled = self._compile()

    def logits(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Floats:
        """Return logits [texts, classes], in the order of `texts`."""
        # What is handed back is looked up once more, when another thread may have changed a list.
        texts, texts_b = tuple(texts), None if texts_b is None else tuple(texts_b)
        try:
            if self._compiled is None:
                return self._answer_by_ids(texts, texts_b)
            logits, others = self._model.answer(self._compiled, texts, texts_b, self._threads)
            if others:
                rest = [texts[row] for row in others]
                rest_b = None if texts_b is None else [texts_b[row] for row in others]
                logits[others] = self._answer_by_ids(rest, rest_b)
            return logits
        except RuntimeError as error:
            raise BundleError(f"{self._path} {error}: copy or export the bundle again") from None

    def _answer_by_ids(self, texts: Sequence[str], texts_b: Sequence[str] | None) -> Floats:
        """Return logits of texts that `tokenizers` cuts into tokens."""
        # Deferred: few texts come this way.
        from bert_kd.data.batches import encode

        tokens = encode(self._tokenizer, texts)
        other = None if texts_b is None else encode(self._tokenizer, texts_b)
        return self._model.logits(
            tokens.ids,
            tokens.offsets,
            None if other is None else other.ids,
            None if other is None else other.offsets,
            self._threads,
        )

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._tokenizer_path, self._rows)

    def _compile(self) -> _native.Tokenizer | None:
        """Return the compiled tokenizer, or None where it does not do this one."""
        try:
            compiled = compile_tokenizer(self._tokenizer_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable_tokenizer(self._tokenizer_path, error) from None
        except UnsupportedTokenizer:
            # Read now, so that a damaged one is told when it is opened.
            assert self._tokenizer is not None
            return None
        check_vocabulary(self._tokenizer_path, compiled.size, self._rows)
        return compiled


def _check(
    model: _native.Model, path: Path, shape: Mapping[str, Any], labels: Sequence[str]
) -> None:
    """Raise BundleError where the file is of another student than the bundle."""
    try:
        known = json.loads(model.metadata["labels"])
        sizes = json.loads(model.metadata["shape"])
    except (KeyError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} does not say what it answers ({error}): copy or export the bundle again"
        ) from None
    if known != list(labels):
        raise BundleError(
            f"{path} was made for the labels {known}, bundle.json names {', '.join(labels)}: "
            "copy or export the bundle again"
        )
    if sizes != dict(shape):
        raise BundleError(
            f"{path} holds a student of other sizes than bundle.json names: it is another bundle's "
            "model; copy or export the bundle again"
        )
