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
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, cast

from bert_kd.errors import BundleError
from bert_kd.runtime.digests import checksum_of
from bert_kd.runtime.engine import (
    Floats,
    Precision,
    check_vocabulary,
    read_tokenizer,
    unreadable_tokenizer,
    usable_cores,
)
from bert_kd.runtime.native.tokenizer import (
    UnsupportedTokenizer,
    compare,
    compile_tokenizer,
    kept_rules,
)

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

        Raises BundleError where a file is damaged or another bundle's. Of the folded embedding each
        row is checked when a text first needs it: then `logits` raises BundleError.
        """
        from bert_kd.runtime.native import _native

        try:
            file = _native.TensorFile(os.fsencode(path))
            # First, so that nothing is made room for that the bundle does not speak of.
            _check(file.metadata, path, shape, labels)
            self._model = _native.Model(file, instruction_set)
        except MemoryError:
            raise BundleError(f"{path} needs more memory than there is: free some") from None
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                f"{path} cannot be loaded by the native runtime ({error}): copy or export the "
                "bundle again"
            ) from None
        self.precision = cast(Precision, self._model.precision)
        self._threads = threads or usable_cores()
        self._path = path
        self._tokenizer_path = tokenizer
        self._rows = int(shape["vocabulary"])
        try:
            # Kept: when it is needed, the folder may hold another bundle.
            self._tokenizer_content = tokenizer.read_bytes()
        except OSError as error:
            raise unreadable_tokenizer(tokenizer, error.strerror) from None
        self._tokenizer: Tokenizer | None = None
        self._reading = Lock()
        self._compiled = self._compile(file)

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

    def misread(self, texts: Sequence[str]) -> list[int]:
        """Return the positions of texts to which the compiled tokenizer gives other ids than
        `tokenizers` does: if there is one, that is a bug.
        """
        if self._compiled is None:
            return []
        return compare(self._compiled, self._read_tokenizer(), texts).differing

    def _answer_by_ids(self, texts: Sequence[str], texts_b: Sequence[str] | None) -> Floats:
        """Return logits of texts that `tokenizers` cuts into tokens."""
        # Deferred: few texts come this way.
        from bert_kd.data.batches import encode

        tokenizer = self._read_tokenizer()
        tokens = encode(tokenizer, texts)
        other = None if texts_b is None else encode(tokenizer, texts_b)
        return self._model.logits(
            tokens.ids,
            tokens.offsets,
            None if other is None else other.ids,
            None if other is None else other.offsets,
            self._threads,
        )

    def _read_tokenizer(self) -> Tokenizer:
        """Return the tokenizer of `tokenizers`, which is read when it is first asked for."""
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = read_tokenizer(
                    self._tokenizer_path, self._rows, self._tokenizer_content
                )
            return self._tokenizer

    def _compile(self, file: _native.TensorFile) -> _native.Tokenizer | None:
        """Return the compiled tokenizer, or None where it does not do this one."""
        try:
            rules = kept_rules(file, checksum_of(self._tokenizer_content))
            compiled = rules.compiled() if rules is not None else None
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise BundleError(
                f"{self._path} holds a damaged tokenizer ({error}): copy or export the bundle again"
            ) from None
        try:
            # Of an older bundle, or of one whose tokenizer.json is another since.
            compiled = compiled or compile_tokenizer(self._tokenizer_content.decode())
        except UnicodeDecodeError as error:
            raise unreadable_tokenizer(self._tokenizer_path, error) from None
        except UnsupportedTokenizer:
            self._read_tokenizer()  # now, so that a damaged one is told when it is opened
            return None
        check_vocabulary(self._tokenizer_path, compiled.size, self._rows)
        return compiled


def _check(
    metadata: Mapping[str, str], path: Path, shape: Mapping[str, Any], labels: Sequence[str]
) -> None:
    """Raise BundleError where the file is of another student than the bundle."""
    try:
        known = json.loads(metadata["labels"])
        sizes = json.loads(metadata["shape"])
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
