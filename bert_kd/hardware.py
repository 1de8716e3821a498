"""What the machine computes in, as far as settings of `auto` go by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal


def computes_bf16() -> bool:
    """Whether matrix products in bf16 are faster here than in fp32: on a GPU or CPU that computes
    in it. Others only emulate it.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    # Older torch does not tell.
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    found = tell()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def precision_of(asked: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """Return the precision meant by a setting: `auto` is bf16 where the machine computes in it."""
    if asked != "auto":
        return asked
    return "bf16" if computes_bf16() else "fp32"
