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
SMALLEST_DEVIATION = 1e-6
"""A spread below this is taken for rounding of float32, in logits and in probabilities."""


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


def standardise(logits: Tensor) -> Tensor:
    """Return logits [batch, classes] with mean 0 and standard deviation 1 in each row.

    Sun et al. 2024, algorithm 1, with the deviation of the population (1/K) that stands there. A
    row of equal logits becomes zeros.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * variance.clamp(min=SMALLEST_DEVIATION**2).rsqrt()


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float,
    other_weight: float,
) -> Tensor:
    """Return `target_weight` · TCKD + `other_weight` · NCKD of softened logits [batch, classes],
    mean over the batch, times T².

    Zhao et al. 2022, equation 7: TCKD is the KL divergence of "the target class or another one",
    NCKD that of the other classes among themselves. The target is the label [batch]; where there
    is none (−1), the teacher's best class. Two classes leave one other: NCKD is 0.
    """
    target = torch.where(labels == NO_LABEL, teacher.argmax(dim=-1), labels)[:, None]  # [batch, 1]
    other = torch.arange(student.shape[-1] - 1, device=student.device)  # [classes − 1]
    other = other + (other >= target)  # [batch, classes − 1]: the columns beside the target

    def decoupled(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of target and not target [batch, 2], and of the other classes."""
        others = logits.gather(-1, other)  # [batch, classes − 1]
        together = others.logsumexp(dim=-1, keepdim=True)  # [batch, 1]
        return torch.cat([logits.gather(-1, target), together], dim=-1), others

    student_target, student_others = decoupled(student / temperature)
    teacher_target, teacher_others = decoupled(teacher / temperature)
    target_term = kl_loss(student_target, teacher_target, 1.0)
    other_term = kl_loss(student_others, teacher_others, 1.0)
    return (target_weight * target_term + other_weight * other_term) * temperature**2


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 − the Pearson correlation of each row of two [rows, columns], mean over the rows.

    Rows in which the teacher does not vary have no correlation and do not count; where only the
    student does not, the correlation is 0.
    """
    student = student - student.mean(dim=-1, keepdim=True)
    teacher = teacher - teacher.mean(dim=-1, keepdim=True)
    distance = 1.0 - F.cosine_similarity(student, teacher, dim=-1, eps=SMALLEST_DEVIATION)  # [rows]
    varies = teacher.norm(dim=-1) > SMALLEST_DEVIATION  # [rows]
    summed = torch.where(varies, distance, 0.0).sum()
    mean: Tensor = summed / varies.sum().clamp(min=1)
    return mean


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    inter_weight: float,
    intra_weight: float,
) -> Tensor:
    """Return `inter_weight` · INTER + `intra_weight` · INTRA of softened logits [batch, classes],
    times T² as in the authors' code.

    Huang et al. 2022, equations 6 to 9: INTER correlates the classes of each row, INTRA the rows
    of the batch for each class.
    """
    student = F.softmax(student / temperature, dim=-1)
    teacher = F.softmax(teacher / temperature, dim=-1)
    inter = correlation_loss(student, teacher)
    intra = correlation_loss(student.T, teacher.T)
    return (inter_weight * inter + intra_weight * intra) * temperature**2


def soft_loss(config: LossConfig, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the soft term that `config` names, for logits [batch, classes] and labels [batch]."""
    temperature = config.temperature
    if config.standardise:
        student, teacher = standardise(student), standardise(teacher)
    if config.soft == "mse":
        return mse_loss(student, teacher)
    if config.soft == "kl":
        return kl_loss(student, teacher, temperature)
    if config.soft == "soft_ce":
        return soft_cross_entropy(student, teacher, temperature)
    if config.soft == "dkd":
        weights = (config.dkd_target_weight, config.dkd_other_weight)
        return dkd_loss(student, teacher, labels, temperature, *weights)
    weights = (config.dist_inter_weight, config.dist_intra_weight)
    return dist_loss(student, teacher, temperature, *weights)


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

    CE is the mean over a batch's labelled rows, SOFT and FEATURE over all of its rows: a labelled
    row counts the more, the fewer of its batch have a label, and a batch without any has no CE.
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
            soft = soft_loss(config, logits, teacher_logits, labels)
        if self.map is not None and teacher_features is not None:
            feature = feature_loss(self.map(pooled), teacher_features, config.feature)
        total = config.hard_weight * hard + config.soft_weight * soft
        return Losses(total + config.feature_weight * feature, hard, soft, feature)
