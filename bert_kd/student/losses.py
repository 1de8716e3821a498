"""The distillation loss: `hard_weight · CE + soft_weight · SOFT + feature_weight · FEATURE`.

Every term is a mean over the rows that it applies to; the reduction is written out because
libraries differ in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_kd.config import LossConfig

NO_LABEL = -1


class Losses(NamedTuple):
    """The weighted sum and its unweighted terms, all scalars."""

    total: Tensor
    hard: Tensor
    soft: Tensor
    feature: Tensor


def hard_loss(student: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of logits [batch, classes] with labels [batch], over the rows that
    have a label.

    Zero (with a gradient of zero) where no row of the batch has one.
    """
    summed = F.cross_entropy(
        student, labels, ignore_index=NO_LABEL, reduction="sum", label_smoothing=label_smoothing
    )
    return summed / (labels != NO_LABEL).sum().clamp(min=1)


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error of logits [batch, classes], mean over batch and classes.

    Tang et al. 2019, equation 5 has the sum over classes of one row; the mean keeps weights
    comparable across data sets with different numbers of classes.
    """
    return (student - teacher).square().mean()


def kl_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher ‖ student) of softened logits [batch, classes], mean over the batch, times
    T².

    Hinton et al. 2015, section 2: softened gradients scale as 1/T², which the factor undoes.
    """
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)  # [batch]
    return divergence.mean() * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy with the teacher's softened probabilities, mean over the batch,
    times T².

    Differs from `kl_loss` by the teacher's entropy alone: the gradient is the same.
    """
    log_student = F.log_softmax(student / temperature, dim=-1)
    targets = F.softmax(teacher / temperature, dim=-1)
    return -(targets * log_student).sum(dim=-1).mean() * temperature**2


def feature_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Return the distance of mapped student features and teacher features, both [batch, size].

    `mse` is the mean over batch and size (Romero et al. 2015, equation 3, up to its factor ½);
    `cosine` is the mean of 1 − cos over the batch (Sanh et al. 2019, section 3).
    """
    if kind == "cosine":
        return (1.0 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    return (student - teacher).square().mean()


class DistillationLoss(nn.Module):
    """The weighted sum, with the learned linear map of the feature term (`student_size` →
    `teacher_size`).
    """

    def __init__(self, config: LossConfig, student_size: int = 0, teacher_size: int = 0) -> None:
        super().__init__()
        self.config = config
        mapped = config.feature_weight > 0
        self.map = nn.Linear(student_size, teacher_size) if mapped else None

    def forward(
        self,
        logits: Tensor,
        pooled: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        teacher_features: Tensor | None = None,
    ) -> Losses:
        """Return the terms for student `logits` [batch, classes] and `pooled` [batch,
        student_size].

        `labels` [batch] hold −1 where there is none; `teacher_logits` may be None where soft_weight
        is 0.
        """
        config = self.config
        zero = torch.zeros((), device=logits.device)
        hard = soft = feature = zero
        if config.hard_weight:
            hard = hard_loss(logits, labels, config.label_smoothing)
        if config.soft_weight and teacher_logits is not None:
            if config.soft == "mse":
                soft = mse_loss(logits, teacher_logits)
            elif config.soft == "kl":
                soft = kl_loss(logits, teacher_logits, config.temperature)
            else:
                soft = soft_cross_entropy(logits, teacher_logits, config.temperature)
        if self.map is not None and teacher_features is not None:
            feature = feature_loss(self.map(pooled), teacher_features, config.feature)
        total = config.hard_weight * hard + config.soft_weight * soft
        return Losses(total + config.feature_weight * feature, hard, soft, feature)
