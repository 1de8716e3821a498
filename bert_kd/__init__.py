"""Distils a fine-tuned BERT text classifier into a fast BiLSTM.

`bert_kd.load(bundle)` opens an exported student and needs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_kd.runtime.predictor import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Deferred, so that `bert-kd --help` does not wait for numpy and ONNX Runtime.
    if name == "load":
        from bert_kd.runtime.predictor import load

        return load
    raise AttributeError(f"module 'bert_kd' has no attribute {name!r}")
