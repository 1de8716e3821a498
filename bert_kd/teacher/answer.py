"""A teacher at work: texts in, logits out, in the order given and with the data's columns.

Rows are batched by length under a budget of padded tokens, which is halved when memory runs out.
Features, where asked for, are the model's pooled state: what its pooler gives or, in models without
one (DistilBERT, RoBERTa, ELECTRA), the last hidden state of the first token, which is what their
heads read; with mean pooling, the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bert_kd.data.batches import Ints, sorted_batches
from bert_kd.errors import TeacherError
from bert_kd.logits.cache import Answers
from bert_kd.progress import say
from bert_kd.teacher.encoding import Encoded, Padding, batch, encode
from bert_kd.teacher.memory import out_of_memory
from bert_kd.teacher.model import Teacher

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Bf16Effect:
    """How far bf16 logits are from fp32 ones, on a sample."""

    rows: int
    largest: float
    mean: float
    agreement: float
    """Share of rows with the same best class."""


class Answering:
    """Answers texts in inference mode; remembers the token budget that fitted and counts cut texts.

    With bf16 the matrix products run in bf16 and the rest in fp32 (autocast); the weights stay as
    they are.
    """

    def __init__(
        self,
        teacher: Teacher,
        precision: Precision = "fp32",
        tokens_per_batch: int = 8192,
        features: bool = False,
    ) -> None:
        self.teacher, self.precision, self.features = teacher, precision, features
        self.tokens_per_batch = tokens_per_batch
        self.cut = 0
        self.padding = Padding.of(teacher.tokenizer)

    def __call__(
        self,
        texts: Sequence[str],
        texts_b: Sequence[str] | None,
        advance: Callable[[int], None] | None = None,
    ) -> Answers:
        """Return the answers to `texts` (and `texts_b`); `advance` hears of each batch's rows.

        Raises TeacherError where memory runs out for a single text.
        """
        self.teacher.model.eval()  # type: ignore[no-untyped-call]
        encoded = encode(self.teacher.tokenizer, [(texts, texts_b)], self.teacher.max_length)
        self.cut += encoded.cut
        lengths = encoded.tokens.lengths
        logits = np.empty((len(encoded), len(self.teacher.labels)), dtype=np.float32)
        features: Any = None
        if self.features:
            size = self.teacher.model.config.hidden_size
            features = np.empty((len(encoded), size), dtype=np.float16)

        is_open = np.ones(len(encoded), dtype=np.bool_)  # [rows]
        while is_open.any():
            todo = np.flatnonzero(is_open)
            for chosen in sorted_batches(lengths[todo], self.tokens_per_batch):
                rows = todo[chosen]
                found = self._try(encoded, rows)
                if found is None:
                    self._halve(len(rows), int(lengths[rows].max()))
                    break
                logits[rows] = found[0].float().cpu().numpy()
                if features is not None:
                    features[rows] = found[1].float().cpu().numpy()
                is_open[rows] = False
                if advance is not None:
                    advance(len(rows))
        if self.teacher.column_order is not None:
            logits = np.ascontiguousarray(logits[:, self.teacher.column_order])
        return Answers(logits, features)

    def _try(self, encoded: Encoded, rows: Ints) -> tuple[Tensor, Tensor] | None:
        """Return logits [batch, classes] and features [batch, size]; None if memory ran out."""
        model = self.teacher.model
        try:
            device = next(model.parameters()).device
            inputs = {
                name: value.to(device) for name, value in batch(encoded, rows, self.padding).items()
            }
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"),
            ):
                return self._forward(inputs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Only here, behind the handler, are the tensors of the failed try released.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        model = self.teacher.model
        if not self.features:
            logits: Tensor = model(**inputs).logits  # [batch, classes]
            return logits, logits
        seen: list[Any] = []
        # The classification model keeps the base model's output to itself.
        hook = model.base_model.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            logits = model(**inputs).logits  # [batch, classes]
        finally:
            hook.remove()
        pooled = getattr(seen[0], "pooler_output", None)  # [batch, size]
        if pooled is None:
            first = inputs["attention_mask"].argmax(dim=1)  # [batch], behind padding on the left
            pooled = seen[0].last_hidden_state[torch.arange(len(first), device=first.device), first]
        return logits, pooled

    def _halve(self, rows: int, longest: int) -> None:
        if rows == 1:
            raise TeacherError(
                f"memory ran out for a single text of {longest} wordpieces: set a lower "
                "teacher.max_length and train the teacher again, or free memory"
            )
        # Of what the batch held: the budget may have been far above it.
        self.tokens_per_batch = max(min(self.tokens_per_batch, rows * longest) // 2, 1)
        say(f"memory ran out: going on with {self.tokens_per_batch:,} tokens a batch")


def answer(
    teacher: Teacher,
    texts: Sequence[str],
    texts_b: Sequence[str] | None = None,
    *,
    precision: Precision = "fp32",
    tokens_per_batch: int = 8192,
    features: bool = False,
) -> Answers:
    """Return logits [rows, classes] (float32) and, if asked for, features (float16)."""
    return Answering(teacher, precision, tokens_per_batch, features)(texts, texts_b)


def measure_bf16(
    teacher: Teacher, texts: Sequence[str], texts_b: Sequence[str] | None, tokens_per_batch: int
) -> Bf16Effect:
    """Return how far bf16 moves the logits of these texts from the fp32 ones."""
    exact, rounded = (
        answer(
            teacher, texts, texts_b, precision=precision, tokens_per_batch=tokens_per_batch
        ).logits
        for precision in ("fp32", "bf16")
    )
    moved = np.abs(exact - rounded)
    same = exact.argmax(axis=1) == rounded.argmax(axis=1)
    return Bf16Effect(len(exact), float(moved.max()), float(moved.mean()), float(same.mean()))
