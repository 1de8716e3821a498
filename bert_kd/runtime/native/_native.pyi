"""The compiled part of the native runtime."""

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

class TensorFile:
    """A safetensors file in memory, mapped. Safe to call from several threads."""

    def __init__(self, path: str | bytes) -> None:
        """Raises RuntimeError where the file can't be read or is damaged."""

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself. Raises UnicodeDecodeError where that is no text."""

    def read_bytes(self, name: str) -> bytes:
        """Return the values of a tensor of bytes in one row, none where there is no such tensor.

        Raises RuntimeError where it is another kind of tensor.
        """

class Model:
    """A folded student in memory. Safe to call from several threads."""

    @overload
    def __init__(self, file: TensorFile, instruction_set: str | None = None) -> None:
        """Pack the weights of a file of `fold.py` for this CPU.

        `instruction_set`: one of `instruction_sets()`, None for the fastest. Raises RuntimeError
        where the file is damaged or of another kind, ValueError where this CPU lacks the
        instruction set. Of the folded embedding no value is read yet.
        """

    @overload
    def __init__(self, path: str | bytes, instruction_set: str | None = None) -> None:
        """The same, of a file that is opened for it alone."""

    @property
    def precision(self) -> str: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def pair(self) -> bool: ...
    def logits(
        self,
        ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        ids_b: npt.NDArray[np.int32] | None = None,
        offsets_b: npt.NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> npt.NDArray[np.float32]:
        """Return logits [texts, classes]; text i is `ids[offsets[i] : offsets[i + 1]]`, never
        empty. No other thread may write into the arrays meanwhile.

        Raises ValueError where ids or offsets don't fit the student or each other, TypeError where
        they are of a type that does not fit, RuntimeError where a token's row of the folded
        embedding holds what is no number, or an answer is none.
        """

    def answer(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        texts_b: Sequence[str] | None = None,
        threads: int = 1,
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Return logits [texts, classes], and the positions of texts (or pairs) that the tokenizer
        hands back: what stands there is no answer.

        Raises as `logits` does.
        """

class Tokenizer:
    """A student's tokenizer, made by `tokenizer.compile_tokenizer`. Safe to call from several
    threads.
    """

    def __init__(
        self,
        *,
        kind: str,
        pieces: bytes,
        unknown: int,
        merges: bytes,
        added: list[tuple[str, int]],
        chinese: bool,
        strip_accents: bool,
        lowercase: bool,
        longest_word: int,
        max_tokens: int,
        keep_end: bool,
    ) -> None:
        """Take the parts of `tokenizer.Rules`.

        Raises ValueError where an id can't be one, or a piece is empty.
        """

    @property
    def size(self) -> int:
        """One more than the largest id."""

    def encode(
        self, texts: Sequence[str], threads: int = 1
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], list[int]]:
        """Return ids, offsets and the positions of texts that are handed back, which have no ids:
        those for which only `tokenizers` is certain, and what is no string of valid Unicode.
        """

def instruction_sets() -> tuple[str, ...]:
    """Return what this CPU can run, fastest first."""

def measure_peak(precision: str, seconds: float = 0.2) -> float:
    """Return the most operations per second of one core's multiply-adds in `precision` ("fp32",
    "bf16", "int8"), a multiplication and an addition counted as one each.
    """

def measure_reading(precision: str, bytes: int, seconds: float = 0.2) -> float:
    """Return the bytes per second at which one core reads so many bytes of weights, over and over,
    with one multiply-add in `precision` for each vector of them.
    """
