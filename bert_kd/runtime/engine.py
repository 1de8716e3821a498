"""What all engines share: what an engine is, the cores that it may use, and the tokenizer that any
of them can fall back to.

Here: `Engine`, the one thing that a predictor asks for, and reading a bundle's `tokenizer.json`.
Not here: the engines (`onnx_engine.py`, `native/engine.py`) and choosing one (`predictor.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from bert_kd.errors import BundleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Floats = npt.NDArray[np.float32]
EngineName = Literal["native", "onnx"]
Precision = Literal["int8", "bf16", "fp32"]
"""Of the recurrent weights and, with several layers, of the later layers' input weights."""
UNKNOWN = "[UNK]"
"""The token that stands for what a tokenizer does not know."""


class Engine(Protocol):
    """What turns texts into logits. Safe to call from several threads at once."""

    @property
    def name(self) -> EngineName:
        """By which `bert_kd.load` knows it."""

    @property
    def precision(self) -> Precision:
        """Of the weights that it multiplies with."""

    def logits(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Floats:
        """Return logits [texts, classes] in the order of `texts`; of pairs, `texts_b` has as many.

        Raises TypeError or UnicodeEncodeError where one of them is no string of whole characters.
        """


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def read_tokenizer(path: Path, rows: int, content: bytes | None = None) -> Tokenizer:
    """Return a bundle's tokenizer; its ids must be rows of a model that has `rows`.

    `content`: that of the file `path`, where it has been read. Raises BundleError where it can't be
    read, gives other ids, or has none for what is unknown.
    """
    # Deferred: the native engine seldom needs it.
    from tokenizers import Tokenizer

    try:
        text = (path.read_bytes() if content is None else content).decode()
        model = json.loads(text)["model"]
        unknown = model["unk_token"] == UNKNOWN and UNKNOWN in model["vocab"]
        tokenizer = Tokenizer.from_str(text)
        ids = tokenizer.get_vocab().values()
    except Exception as error:
        # `tokenizers` raises plain Exception.
        raise unreadable_tokenizer(path, error) from error
    if not unknown:
        # `tokenizers` would not say so before it meets a word that it does not know.
        raise unreadable_tokenizer(path, f"its vocabulary has no {UNKNOWN}")
    # The largest, not their number: ids may leave some out.
    check_vocabulary(path, max(ids) + 1, rows)
    return tokenizer


def check_vocabulary(path: Path, size: int, rows: int) -> None:
    """Raise BundleError where a model has fewer rows than a tokenizer has ids, below `size`."""
    if size > rows:
        raise BundleError(
            f"{path} gives ids up to {size - 1} and the model has {rows} rows: it is another "
            "bundle's tokenizer; copy or export the bundle again"
        )


def unreadable_tokenizer(path: Path, why: Any) -> BundleError:
    """Return the error for a `tokenizer.json` that is none."""
    return BundleError(
        f"{path} cannot be read as a tokenizer ({why}): copy or export the bundle again"
    )
