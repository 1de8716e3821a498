"""What all engines share: what an engine is, and the tokenizer that any of them can fall back to.

Here: `Engine`, the one thing that a predictor asks for, and reading a bundle's `tokenizer.json`.
Not here: the engines (`onnx_engine.py`, `native/engine.py`) and choosing one (`predictor.py`).
"""

from __future__ import annotations

import json
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


def read_tokenizer(path: Path, rows: int) -> Tokenizer:
    """Return a bundle's tokenizer; its ids must be rows of a model that has `rows`.

    Raises BundleError where it can't be read or knows more.
    """
    # Deferred: the native engine seldom needs it.
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        # `tokenizers` raises plain Exception.
        raise unreadable_tokenizer(path, error) from error
    check_vocabulary(path, tokenizer.get_vocab_size(), rows)
    return tokenizer


def check_vocabulary(path: Path, size: int, rows: int) -> None:
    """Raise BundleError where a tokenizer knows more tokens than the model."""
    if size > rows:
        raise BundleError(
            f"{path} knows {size} tokens and the model {rows}: it is another bundle's tokenizer; "
            "copy or export the bundle again"
        )


def unreadable_tokenizer(path: Path, why: Any) -> BundleError:
    """Return the error for a `tokenizer.json` that is none."""
    return BundleError(
        f"{path} cannot be read as a tokenizer ({why}): copy or export the bundle again"
    )
