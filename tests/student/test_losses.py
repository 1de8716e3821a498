"""Each loss against its published formula, computed by hand without torch's loss functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bert_kd.config import LossConfig
from bert_kd.student.losses import (
    DistillationLoss,
    feature_loss,
    hard_loss,
    kl_loss,
    mse_loss,
    soft_cross_entropy,
)

STUDENT = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
TEACHER = torch.tensor([[1.0, -1.0], [0.0, 4.0]])
LABELS = torch.tensor([0, 1])


def softmax(values, temperature: float = 1.0):
    raised = np.exp(np.asarray(values, dtype=np.float64) / temperature)
    return raised / raised.sum(axis=-1, keepdims=True)


def gradient(loss, *arguments):
    student = STUDENT.clone().requires_grad_()
    loss(student, *arguments).backward()
    return student.grad.numpy()


def test_cross_entropy_by_hand():
    # −log softmax: row 1 log(1 + e⁻²), row 2 the same.
    assert hard_loss(STUDENT, LABELS).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_rows_without_gold_label_are_masked_not_averaged_in():
    masked = hard_loss(STUDENT, torch.tensor([0, -1])).item()
    assert masked == pytest.approx(hard_loss(STUDENT[:1], LABELS[:1]).item())
    student = STUDENT.clone().requires_grad_()
    hard_loss(student, torch.tensor([0, -1])).backward()
    assert student.grad[1].abs().sum() == 0 and student.grad[0].abs().sum() > 0


def test_a_batch_without_any_gold_label_costs_nothing_and_is_finite():
    student = STUDENT.clone().requires_grad_()
    loss = hard_loss(student, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().sum() == 0


def test_label_smoothing_by_hand():
    # (1 − ε) · CE + ε · mean over classes of −log p.
    p = softmax(STUDENT)
    expected = 0.0
    for row, label in enumerate(LABELS):
        expected += 0.9 * -math.log(p[row, label]) + 0.1 * -np.log(p[row]).mean()
    assert hard_loss(STUDENT, LABELS, 0.1).item() == pytest.approx(expected / 2)


def test_mse_by_hand():
    # Differences 1, 1, 1, −1.
    assert mse_loss(STUDENT, TEACHER).item() == pytest.approx(1.0)
    np.testing.assert_allclose(
        gradient(mse_loss, TEACHER), 2 * (STUDENT - TEACHER).numpy() / 4, rtol=1e-6
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_kl_by_hand(temperature: float):
    q, p = softmax(STUDENT, temperature), softmax(TEACHER, temperature)
    expected = (p * np.log(p / q)).sum(axis=1).mean() * temperature**2
    assert kl_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_kl_gradient_is_that_of_hinton_2015(temperature: float):
    # Equation 2: ∂C/∂zᵢ = (qᵢ − pᵢ)/T, times T² here, mean over the batch of 2.
    q, p = softmax(STUDENT, temperature), softmax(TEACHER, temperature)
    expected = temperature * (q - p) / 2
    np.testing.assert_allclose(
        gradient(kl_loss, TEACHER, temperature), expected, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        gradient(soft_cross_entropy, TEACHER, temperature), expected, rtol=1e-4, atol=1e-6
    )


def test_at_high_temperature_kl_becomes_half_the_mse_of_centred_logits():
    # Hinton 2015, equation 4: gradient (zᵢ − vᵢ)/(N T²) for zero-mean logits, times T² here.
    student = STUDENT - STUDENT.mean(dim=1, keepdim=True)
    teacher = TEACHER - TEACHER.mean(dim=1, keepdim=True)
    student.requires_grad_()
    kl_loss(student, teacher, 1000.0).backward()
    expected = (student - teacher).detach().numpy() / 2 / 2  # N classes, batch
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy(temperature: float):
    p = softmax(TEACHER, temperature)
    entropy = -(p * np.log(p)).sum(axis=1).mean() * temperature**2
    difference = soft_cross_entropy(STUDENT, TEACHER, temperature) - kl_loss(
        STUDENT, TEACHER, temperature
    )
    assert difference.item() == pytest.approx(entropy, rel=1e-4)


def test_equal_logits_give_zero_soft_loss():
    assert mse_loss(TEACHER, TEACHER).item() == 0
    assert kl_loss(TEACHER, TEACHER, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_kl_ignores_a_shift_of_the_logits_and_mse_does_not():
    assert kl_loss(TEACHER + 5, TEACHER, 2.0).item() == pytest.approx(0, abs=1e-5)
    assert mse_loss(TEACHER + 5, TEACHER).item() == pytest.approx(25)


def test_features_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert feature_loss(a, b, "mse").item() == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert feature_loss(a, b, "cosine").item() == pytest.approx(((1 - 24 / 25) + 1) / 2)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_the_feature_map_is_learned_and_joins_the_sum(kind: str):
    config = LossConfig(hard_weight=0.5, soft_weight=2.0, feature_weight=3.0, feature=kind)
    loss = DistillationLoss(config, student_size=3, teacher_size=2)
    pooled, features = torch.randn(2, 3), torch.randn(2, 2)
    found = loss(STUDENT, pooled, LABELS, TEACHER, features)
    mapped = pooled @ loss.map.weight.T + loss.map.bias
    assert found.feature.item() == pytest.approx(feature_loss(mapped, features, kind).item())
    assert found.total.item() == pytest.approx(
        0.5 * found.hard.item() + 2.0 * found.soft.item() + 3.0 * found.feature.item()
    )
    found.total.backward()
    assert loss.map.weight.grad.abs().sum() > 0


def test_presets_are_the_published_recipes():
    hinton = LossConfig(preset="hinton", temperature=2.0)
    total = DistillationLoss(hinton)(STUDENT, None, LABELS, TEACHER).total
    expected = 0.9 * kl_loss(STUDENT, TEACHER, 2.0) + 0.1 * hard_loss(STUDENT, LABELS)
    assert total.item() == pytest.approx(expected.item())
    tang = DistillationLoss(LossConfig(preset="tang2019"))(STUDENT, None, LABELS, TEACHER)
    assert tang.total.item() == pytest.approx(mse_loss(STUDENT, TEACHER).item())
    seed = DistillationLoss(LossConfig(preset="seed"))(STUDENT, None, LABELS, TEACHER)
    assert seed.total.item() == pytest.approx(
        0.5 * hard_loss(STUDENT, LABELS).item() + 0.5 * mse_loss(STUDENT, TEACHER).item()
    )


def test_label_smoothing_joins_the_sum():
    config = LossConfig(hard_weight=1.0, soft_weight=0.0, label_smoothing=0.3)
    found = DistillationLoss(config)(STUDENT, None, LABELS, None)
    assert found.hard.item() == pytest.approx(hard_loss(STUDENT, LABELS, 0.3).item())
    assert found.total.item() == found.hard.item() > hard_loss(STUDENT, LABELS).item() + 0.1


def test_a_twin_needs_no_teacher():
    config = LossConfig(hard_weight=1.0, soft_weight=0.0)
    found = DistillationLoss(config)(STUDENT, None, LABELS, None)
    assert found.total.item() == pytest.approx(hard_loss(STUDENT, LABELS).item())
