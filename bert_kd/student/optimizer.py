"""What moves a student's weights: AdamW, for the embedding at the cost of the rows that are read.

`DeferredAdamW` is that of the embedding, `StudentOptimizer` the whole: both optimizers, their
learning rates, clipping and fp16's gradient scaler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bert_kd.config import TrainingConfig

CHUNK = 512
"""Rows that are moved in one go: their moments fit a core's cache."""


class DeferredAdamW(torch.optim.Optimizer):
    """AdamW of one table with sparse gradients, whose updates of a row wait until it is read.

    AdamW moves every row at every step: after a gradient, the decaying first moment goes on to move
    the row, nine times as far as the first step did, and both moments fade. A step costs what the
    table holds. Lazy Adam (`torch.optim.SparseAdam`) leaves all of that out, so that it is fast and
    rare words hardly learn. Here the steps that a row has missed are made up for in one, by the sum
    of a geometric series, when `catch_up` names the row: the weights are those of
    `torch.optim.AdamW` but for rounding (and `eps`, whose share of the denominator stays what it
    was when the row caught up last), for about the price of lazy Adam. At least once in `WINDOW`
    steps all rows catch up.
    """

    WINDOW = 256
    """Steps whose sizes are remembered."""

    def __init__(
        self,
        table: Tensor,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([table], defaults)
        power = torch.arange(self.WINDOW + 1).unsqueeze(1) - torch.arange(self.WINDOW)
        ratio = betas[0] / math.sqrt(betas[1])
        # What is left, after k missed steps, of the direction at the one that was i steps ago.
        self._left = torch.where(power > 0, ratio ** power.clamp(min=0).double(), 0.0).float()
        self._fades = torch.tensor(betas, dtype=torch.float64) ** torch.arange(
            self.WINDOW + 1
        ).unsqueeze(1)  # [missed steps, moments]

    @property
    def _table(self) -> Tensor:
        table: Tensor = self.param_groups[0]["params"][0]
        return table

    def _state(self) -> dict[str, Any]:
        """Return the state of the table, made at the first step."""
        table = self._table
        state: dict[str, Any] = self.state[table]
        if not state:
            rows, size = table.shape
            state["step"] = 0
            state["moments"] = torch.zeros(rows, 2, size, device=table.device)
            state["seen"] = torch.zeros(rows, dtype=torch.int64, device=table.device)
            # Of the last steps, the latest first: their sizes, and what weight decay left.
            state["recent"] = torch.ones(2, self.WINDOW, device=table.device)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; torch makes all tensors floating point on the way."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["seen"] = state["seen"].long()

    @torch.no_grad()
    def catch_up(self, rows: Tensor | None = None) -> None:
        """Bring the rows (None: all; in any shape, repeated or not) to where AdamW would have them
        by now. To be called with the ids of a batch before they are read.
        """
        state, table = self._state(), self._table
        if not state["step"]:
            return
        recent = state["recent"]
        self._left, self._fades = self._left.to(recent), self._fades.to(recent)
        shrink = torch.cat([recent.new_ones(1), recent[1].cumprod(0)])  # over k steps
        sizes = self._left @ (recent[0] * shrink[:-1])
        if rows is not None:
            self._make_up(torch.unique(rows), sizes, shrink)
            return
        for part in torch.split(torch.arange(len(table), device=table.device), CHUNK):
            self._make_up(part, sizes, shrink)

    def _make_up(self, rows: Tensor, sizes: Tensor, shrink: Tensor) -> None:
        """Move different rows by the steps that they have missed."""
        state, table = self._state(), self._table
        (_, second), eps = self.param_groups[0]["betas"], self.param_groups[0]["eps"]
        seen = state["seen"].index_select(0, rows)
        missed = state["step"] - seen  # [rows], at most WINDOW
        moments = state["moments"].index_select(0, rows)
        # Of a row that no batch has read the moments are 0, and so is its direction.
        little = eps * (1 - second ** seen.clamp(min=1).double()).sqrt().to(moments)
        direction = moments[:, 0] / moments[:, 1].sqrt().add_(little.unsqueeze(1))
        moved = table.index_select(0, rows).mul_(shrink[missed].unsqueeze(1))
        moved.addcmul_(direction, sizes[missed].unsqueeze(1), value=-1)
        table.index_copy_(0, rows, moved)
        state["moments"].index_copy_(0, rows, moments.mul_(self._fades[missed].unsqueeze(2)))
        state["seen"][rows] = state["step"]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the rows of the gradient, which have caught up; all others wait.

        Raises RuntimeError where a row of the gradient has not.
        """
        table, group = self._table, self.param_groups[0]
        if table.grad is None:
            return
        state = self._state()
        gradient = table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        if (state["seen"].index_select(0, rows) < state["step"]).any():
            raise RuntimeError("rows were read without catch_up: name all that a batch reads")
        state["step"] += 1
        step, rate, (first, second) = state["step"], group["lr"], group["betas"]
        root = math.sqrt(1 - second**step)
        size, shrink = rate * root / (1 - first**step), 1 - rate * group["weight_decay"]
        latest = state["recent"].new_tensor([[size], [shrink]])
        state["recent"] = torch.cat([latest, state["recent"][:, :-1]], dim=1)

        moments = state["moments"].index_select(0, rows)
        mean = moments[:, 0].lerp_(values, 1 - first)
        square = moments[:, 1].mul_(second).addcmul_(values, values, value=1 - second)
        state["moments"].index_copy_(0, rows, moments)
        moved = table.index_select(0, rows).mul_(shrink)
        moved.addcdiv_(mean, square.sqrt().add_(group["eps"] * root), value=-size)
        table.index_copy_(0, rows, moved)
        state["seen"][rows] = step
        if step % self.WINDOW == 0:
            self.catch_up()


class StudentOptimizer:
    """AdamW of the dense weights and, where there is one, of the embedding's table, whose rows wait
    until a batch reads them: a step costs what the batch holds, not what the vocabulary does.

    A step is `begin`, `catch_up` with the ids of the batch, forward and backward, `step`.
    """

    def __init__(
        self,
        dense: Sequence[Tensor],
        table: Tensor | None,
        settings: TrainingConfig,
        rate_of_embedding: float,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """`rate_of_embedding` is the table's learning rate as a multiple of the others'; `scaler`
        has scaled the loss.
        """
        rate, decay = settings.learning_rate, settings.weight_decay
        self.dense = torch.optim.AdamW(dense, lr=rate, weight_decay=decay, fused=True)
        self.embedding = None if table is None else DeferredAdamW(table, rate, weight_decay=decay)
        self._rate_of_embedding, self._clip, self._scaler = rate_of_embedding, settings.clip, scaler

    @property
    def _all(self) -> list[torch.optim.Optimizer]:
        return [self.dense] if self.embedding is None else [self.dense, self.embedding]

    def begin(self, rate: float) -> None:
        """Forget the last step's gradients and set this step's learning rate."""
        self.dense.zero_grad()
        self.dense.param_groups[0]["lr"] = rate
        if self.embedding is not None:
            self.embedding.zero_grad()
            self.embedding.param_groups[0]["lr"] = rate * self._rate_of_embedding

    def catch_up(self, *ids: Tensor | None) -> None:
        """Bring the embedding's rows of these tokens up to this step; without an argument all."""
        if self.embedding is not None:
            read = [found.ravel() for found in ids if found is not None]
            self.embedding.catch_up(torch.cat(read) if read else None)

    def step(self) -> None:
        """Clip the gradients and move the weights; where a scaled gradient overflowed, move none of
        them and lower the scale.

        The optimizers share one scaler, and its scale is adapted once a step.
        """
        optimizers = self._all
        if self._scaler is not None:
            for optimizer in optimizers:
                self._scaler.unscale_(optimizer)
        learning = [p for optimizer in optimizers for p in optimizer.param_groups[0]["params"]]
        norm = clip_gradients(learning, self._clip)
        if self._scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return
        if norm.isfinite():
            for optimizer in optimizers:
                self._scaler.step(optimizer)
        self._scaler.update()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, by names that `load` knows."""
        return {
            f"{number}.{index}.{key}": torch.as_tensor(value)
            for number, optimizer in enumerate(self._all)
            for index, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` gave."""
        states = [optimizer.state_dict() for optimizer in self._all]
        for name, value in tensors.items():
            number, index, key = name.split(".", 2)
            # DeferredAdamW counts its steps in a plain integer.
            given = value if value.ndim or value.is_floating_point() else int(value)
            states[int(number)]["state"].setdefault(int(index), {})[key] = given
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


@torch.no_grad()
def clip_gradients(learning: Sequence[Tensor], largest: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `largest` (0: as they are); return
    the norm that they had.

    A sparse gradient's repeated rows are added up first: the norm is that of the dense gradient.
    """
    values = []
    for parameter in learning:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    norm: Tensor = torch.stack([torch.linalg.vector_norm(value) for value in values]).norm()
    if largest:
        scale = (largest / (norm + 1e-6)).clamp(max=1.0)
        for value in values:
            value.mul_(scale)
    return norm
