"""The loops that the training benchmark compares, all of the same student and the same loss.

The ordinary one shuffles rows and pads each batch to its longest text, with a `DataLoader`, dense
gradients of the embedding and AdamW as it comes. `Parts` switches on, one by one, what the
package's loop (`bert_kd.student.train`) does otherwise; that loop itself is timed as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from bert_kd.config import StudentConfig
from bert_kd.data.batches import bucketed_batches
from bert_kd.student.losses import DistillationLoss
from bert_kd.student.model import BiLSTM, Output, Shape
from bert_kd.student.optimizer import DeferredAdamW, clip_gradients
from bert_kd.student.train import Examples, evaluate, is_as_good, learning_rates, train


@dataclass(frozen=True)
class Parts:
    """What a loop does otherwise than the ordinary one."""

    packed: bool = False
    """The LSTM is one bidirectional `nn.LSTM` over packed sequences."""
    buckets: bool = False
    """Batches hold texts of similar length."""
    deferred: bool = False
    """The embedding's gradient is of the rows that a batch reads; their updates wait until then."""
    fused: bool = False
    """AdamW in one pass over the weights."""
    bf16: bool = False
    """Matrix products in bf16."""


class PackedBiLSTM(BiLSTM):
    """The student with one bidirectional `nn.LSTM` a layer, over packed sequences (max pooling)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        size = shape.embedding
        self.layers = nn.ModuleList()
        for _ in range(shape.layers):
            lstm = nn.LSTM(size, shape.hidden, batch_first=True, bidirectional=True)
            self.layers.append(lstm)
            size = 2 * shape.hidden

    def encode(
        self,
        ids: Tensor,
        lengths: Tensor,
        others: Tensor | None = None,
        lengths_other: Tensor | None = None,
    ) -> Tensor:
        """Return the pooled states [batch, 2 · hidden]."""
        states = self.embedding(ids)  # [batch, length, embedding]
        for layer in self.layers:
            packed = pack_padded_sequence(
                self.dropout(states), lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            states, _ = pad_packed_sequence(
                layer(packed)[0], batch_first=True, padding_value=-math.inf
            )  # [batch, length, 2 · hidden]
            if layer is not self.layers[-1]:
                states = states.clamp(min=-1.0)  # a state lies above; padding is not read
        pooled: Tensor = states.amax(dim=1)
        return pooled


def training_device() -> torch.device:
    """Return the device that the package's loop trains on, which the others take, too."""
    device: torch.device = PartialState().device
    return device


class Loop:
    """A training loop with some of the parts, which keeps its model and optimizers."""

    def __init__(
        self, config: StudentConfig, shape: Shape, examples: Examples, parts: Parts, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.examples, self.parts, self.seed = config, examples, parts, seed
        self.device = training_device()
        self.model = (PackedBiLSTM if parts.packed else BiLSTM)(shape).to(self.device)
        self.model.embedding.sparse = parts.deferred
        self.objective = DistillationLoss(config.loss, shape.pooled, 0).to(self.device)
        self.optimizers = self._optimizers()
        offsets, ids = examples.tokens.offsets, torch.from_numpy(examples.tokens.ids).long()
        self.texts = [ids[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
        self.labels = torch.from_numpy(examples.labels)
        self.logits = None if examples.logits is None else torch.from_numpy(examples.logits)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        settings, table = self.config.training, self.model.embedding.weight
        dense = [
            parameter
            for parameter in self.model.parameters()
            if not (self.parts.deferred and parameter is table)
        ]
        rates = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        # None: what torch itself chooses.
        found: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(dense, **rates, fused=True if self.parts.fused else None)
        ]
        if self.parts.deferred:
            found.append(DeferredAdamW(table, **rates))
        return found

    def _batches(self, epoch: int) -> list[list[int]]:
        shuffled = np.random.default_rng([self.seed, epoch])
        size = self.config.training.batch_over(len(self.examples))
        if self.parts.buckets:
            found = bucketed_batches(self.examples.lengths, size, shuffled)
            return [rows.tolist() for rows in found]
        order = shuffled.permutation(len(self.examples)).tolist()
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _collate(self, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        texts = [self.texts[row] for row in rows]
        return (
            pad_sequence(texts, batch_first=True),  # [batch, length]
            torch.tensor([len(text) for text in texts]),
            self.labels[rows],
            None if self.logits is None else self.logits[rows],
        )

    def epoch(self, number: int, rates: Iterator[float] | None = None) -> float:
        """Train on all rows once and return the seconds it took; `rates` gives the learning rate
        of each step, None: it stays.
        """
        started = time.perf_counter()
        self.model.train()
        loader: Any = DataLoader(
            range(len(self.examples)),  # type: ignore[arg-type]
            batch_sampler=self._batches(number),
            collate_fn=self._collate,
        )
        total = 0.0
        for ids, lengths, labels, logits in loader:
            rate = self.config.training.learning_rate if rates is None else next(rates)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
                optimizer.param_groups[0]["lr"] = rate
            if self.parts.deferred:
                self.optimizers[1].catch_up(ids.to(self.device))
            kind = self.device.type
            autocast = torch.autocast(kind, torch.bfloat16) if self.parts.bf16 else nullcontext()
            with autocast:
                output: Output = self.model(ids.to(self.device), lengths.to(self.device))
            losses = self.objective(
                output.logits.float(),
                output.pooled.float(),
                labels.to(self.device),
                None if logits is None else logits.to(self.device),
                None,
            )
            losses.total.backward()
            self._clip()
            for optimizer in self.optimizers:
                optimizer.step()
            total += losses.total.item()
        if self.parts.deferred:
            self.optimizers[1].catch_up()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _clip(self) -> None:
        """Scale the gradients as the package does."""
        clip_gradients(list(self.model.parameters()), self.config.training.clip)


def package_epoch(config: StudentConfig, shape: Shape, examples: Examples, seed: int) -> float:
    """Train a student by the package's loop for one epoch and return the seconds it took; making
    the model and writing its checkpoint are not part of them.
    """
    torch.manual_seed(seed)
    training = config.training.model_copy(update={"epochs": 1, "checkpoint_seconds": 1e9})
    few = Examples(examples.tokens.take(np.arange(2)), None, examples.labels[:2])
    with TemporaryDirectory() as aside:
        found = train(
            config.model_copy(update={"training": training}),
            BiLSTM(shape),
            examples,
            few,
            Path(aside),
            seed=seed,
            name="",
            fingerprint="",
        )
    return float(found["seconds"])


def train_ordinarily(loop: Loop, validation: Examples, epochs: int) -> None:
    """Train by the ordinary loop for `epochs`, with the package's learning rates, and leave in the
    model the weights of the epoch that the package would keep.
    """
    settings = loop.config.training
    steps = math.ceil(len(loop.examples) / settings.batch_over(len(loop.examples)))
    rate = learning_rates(settings, epochs * steps)
    rates = map(rate, range(epochs * steps))
    best, kept = 0.0, deepcopy(loop.model.state_dict())
    for number in range(epochs):
        loop.epoch(number, rates)
        accuracy = evaluate(loop.model, validation)["accuracy"]
        best = max(best, accuracy)
        if is_as_good(accuracy, best, "accuracy", len(validation)):
            kept = deepcopy(loop.model.state_dict())
    loop.model.load_state_dict(kept)
