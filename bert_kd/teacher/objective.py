"""What fine-tuning minimises: cross-entropy, class weights, smoothing, R-Drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from bert_kd.errors import TeacherError


def class_weights(
    setting: Literal["none", "balanced"] | Sequence[float],
    gold: npt.NDArray[np.int64],
    labels: Sequence[str],
) -> Tensor:
    """Return one weight a class, shape [classes].

    `balanced` is rows / (classes × rows of the class), as in King and Zeng 2001 and scikit-learn; a
    class without rows has weight 1. Raises TeacherError where a list has another length than
    `labels`.
    """
    if setting == "none":
        return torch.ones(len(labels))
    if setting == "balanced":
        counts = np.bincount(gold, minlength=len(labels))  # [classes]
        weights = np.where(counts > 0, len(gold) / (len(labels) * np.maximum(counts, 1)), 1.0)
        return torch.from_numpy(weights.astype(np.float32))
    if len(setting) != len(labels):
        raise TeacherError(
            f"teacher.class_weights gives {len(setting)} weights, but the data has {len(labels)} "
            f"classes: one each, in the order {', '.join(labels)}"
        )
    return torch.tensor([float(weight) for weight in setting])


def weighted_loss(
    logits: Tensor,
    gold: Tensor,
    weights: Tensor,
    smoothing: float,
    total_weight: Tensor | None = None,
) -> Tensor:
    """Return the weighted cross-entropy against smoothed labels, a scalar.

    With q = (1 − ε)·onehot(y) + ε/C: sum over rows of Σ_c w_c · q_c · (−log p_c), divided by the
    sum of w_y, which is what `torch.nn.functional.cross_entropy` does with `weight` and
    `label_smoothing` together. `total_weight` is the sum of w_y where this batch is one part of an
    accumulated batch: the parts then add up to the loss of the whole.
    """
    weights = weights.to(logits.device)
    summed = cross_entropy(
        logits.float(), gold, weight=weights, label_smoothing=smoothing, reduction="sum"
    )
    return summed / (weights[gold].sum() if total_weight is None else total_weight)


def r_drop_loss(
    logits: Tensor,
    gold: Tensor,
    weights: Tensor,
    smoothing: float,
    factor: float,
    total_weight: Tensor | None = None,
) -> Tensor:
    """Return the loss of R-Drop (Wu et al. 2021, equation 4) as its authors' code has it, a scalar.

    `logits` [2 · batch, classes] hold two passes P and Q of the same rows, one after the other. The
    loss is the mean of the two passes' `weighted_loss`, where the equation has their sum, plus
    `factor` · ½ (KL(P ‖ Q) + KL(Q ‖ P)); a row has in the second term the weight of its class that
    it has in the first. `total_weight` is as in `weighted_loss`.
    """
    passes = logits.float().chunk(2)  # each [batch, classes]
    total = weights.to(logits.device)[gold].sum() if total_weight is None else total_weight
    hard = sum(weighted_loss(one, gold, weights, smoothing, total) for one in passes) / 2
    p, q = (log_softmax(one, dim=1) for one in passes)
    # KL(P ‖ Q) + KL(Q ‖ P) in one sum.
    apart = ((p.exp() - q.exp()) * (p - q)).sum(dim=1)  # [batch]
    return hard + factor * (weights.to(logits.device)[gold] * apart / 2).sum() / total
