"""Telling an allocator's failure from other errors."""

from __future__ import annotations

import torch

MESSAGES = ("out of memory", "not enough memory", "can't allocate", "cannot allocate memory")
"""How the allocators of CPU and GPU put it; torch's CPU allocator raises a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of the machine or of its GPU, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in MESSAGES)
