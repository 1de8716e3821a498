"""Decoupled KD, DIST and standardised logits: each against its paper's formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_kd.config import LossConfig
from bert_kd.student.losses import (
    DistillationLoss,
    correlation_loss,
    dist_loss,
    dkd_loss,
    hard_loss,
    kl_loss,
    soft_cross_entropy,
    soft_loss,
    standardise,
)

STUDENT = torch.tensor([[2.0, 0.0, -1.0, 0.5], [1.0, 3.0, 0.0, -2.0], [0.3, 0.1, 1.4, -0.6]])
TEACHER = torch.tensor([[1.0, -1.0, 0.0, 2.5], [0.0, 4.0, 1.0, -1.0], [-2.0, 0.7, 1.9, 0.4]])
LABELS = torch.tensor([0, -1, 3])  # the second row is a transfer row: no gold label
TARGETS = [0, 1, 3]  # … and its teacher's best class is 1
CONFIGS = {
    "mse": LossConfig(),
    "kl": LossConfig(soft="kl", temperature=2.0),
    "kl, standardised": LossConfig(soft="kl", temperature=2.0, standardise=True),
    "dkd": LossConfig(soft="dkd", temperature=2.0),
    "dkd, standardised": LossConfig(soft="dkd", temperature=2.0, standardise=True),
    "dist": LossConfig(soft="dist", temperature=2.0),
}


def softmax(values, temperature: float = 1.0):
    raised = np.exp(np.asarray(values, dtype=np.float64) / temperature)
    return raised / raised.sum(axis=-1, keepdims=True)


def divergence(p, q) -> float:
    return float((p * np.log(p / q)).sum())


def decoupled(temperature: float) -> tuple[list[float], list[float], list[float]]:
    """Return TCKD, NCKD and the teacher's probability of the target, row by row, as written in
    section 3.1: b = [p_t, 1 − p_t], p̂ᵢ = pᵢ / (1 − p_t) for i ≠ t.
    """
    target_terms, other_terms, sure = [], [], []
    for row, target in enumerate(TARGETS):
        p, q = softmax(TEACHER[row], temperature), softmax(STUDENT[row], temperature)
        b_p, b_q = (np.array([values[target], 1 - values[target]]) for values in (p, q))
        others_p, others_q = (np.delete(values, target) / (1 - values[target]) for values in (p, q))
        target_terms.append(divergence(b_p, b_q))
        other_terms.append(divergence(others_p, others_q))
        sure.append(float(p[target]))
    return target_terms, other_terms, sure


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.5, 0.0), (0.0, 2.0)])
def test_dkd_is_equation_7(temperature: float, alpha: float, beta: float):
    target_terms, other_terms, _ = decoupled(temperature)
    expected = (alpha * np.mean(target_terms) + beta * np.mean(other_terms)) * temperature**2
    found = dkd_loss(STUDENT, TEACHER, LABELS, temperature, alpha, beta)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_dkd_puts_kl_together_again():
    # Equation 6: KL = TCKD + (1 − p_t) · NCKD, row by row; what `decoupled` says is checked too.
    target_terms, other_terms, sure = decoupled(3.0)
    rows = [t + (1 - p) * n for t, n, p in zip(target_terms, other_terms, sure, strict=True)]
    assert kl_loss(STUDENT, TEACHER, 3.0).item() == pytest.approx(np.mean(rows) * 9, rel=1e-5)


def test_of_two_classes_dkd_leaves_kl():
    two = (STUDENT[:, :2], TEACHER[:, :2])
    labels = torch.tensor([0, 1, -1])
    found = dkd_loss(*two, labels, 2.0, 3.0, 8.0)
    assert found.item() == pytest.approx(3 * kl_loss(*two, 2.0).item(), rel=1e-5)


def test_a_gold_label_is_the_target_even_where_the_teacher_answers_another():
    gold, own, none = torch.tensor([2, 2, 2]), TEACHER.argmax(dim=1), torch.full((3,), -1)
    found = [dkd_loss(STUDENT, TEACHER, labels, 1.0, 1.0, 8.0) for labels in (gold, own, none)]
    assert found[1] == found[2] and found[0] != found[1]


def correlation(x, y) -> float:
    return float(np.corrcoef(np.asarray(x, np.float64), np.asarray(y, np.float64))[0, 1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_equations_6_to_9(temperature: float):
    p, q = softmax(TEACHER, temperature), softmax(STUDENT, temperature)
    inter = np.mean([1 - correlation(q[row], p[row]) for row in range(3)])
    intra = np.mean([1 - correlation(q[:, column], p[:, column]) for column in range(4)])
    for weights in ((2.0, 2.0), (1.0, 0.0), (0.0, 0.5)):
        expected = (weights[0] * inter + weights[1] * intra) * temperature**2
        found = dist_loss(STUDENT, TEACHER, temperature, *weights)
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_correlations_that_are_not_there_do_not_count():
    teacher = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    student = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    assert correlation_loss(student, teacher).item() == pytest.approx(2.0)
    assert correlation_loss(teacher, student).item() == pytest.approx((1.0 + 2.0) / 2)
    # A batch of one row has no correlation within a class: only the row itself is left.
    one = dist_loss(STUDENT[:1], TEACHER[:1], 1.0, 0.0, 2.0)
    assert one.item() == 0


def test_standardise_is_algorithm_1():
    z = STUDENT.numpy().astype(np.float64)
    expected = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True)
    np.testing.assert_allclose(standardise(STUDENT).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert standardise(torch.full((2, 4), 3.0)).abs().max() == 0


@pytest.mark.parametrize("soft", ["kl", "soft_ce", "dkd"])
def test_standardised_terms_are_those_of_z_scores(soft: str):
    config = LossConfig(soft=soft, standardise=True, temperature=2.0)
    student, teacher = standardise(STUDENT), standardise(TEACHER)
    expected = {
        "kl": lambda: kl_loss(student, teacher, 2.0),
        "soft_ce": lambda: soft_cross_entropy(student, teacher, 2.0),
        "dkd": lambda: dkd_loss(student, teacher, LABELS, 2.0, 1.0, 8.0),
    }[soft]()
    found = soft_loss(config, STUDENT, TEACHER, LABELS)
    assert found.item() == pytest.approx(expected.item())
    # How large the logits are is nothing to learn, on either side.
    larger = soft_loss(config, 5 * STUDENT + 1, 0.1 * TEACHER - 2, LABELS)
    assert larger.item() == pytest.approx(found.item(), rel=1e-4)


def test_the_hard_term_sees_the_logits_as_they_are():
    config = LossConfig(soft="kl", standardise=True, hard_weight=0.5, temperature=2.0)
    found = DistillationLoss(config)(STUDENT, None, LABELS, TEACHER)
    assert found.hard.item() == hard_loss(STUDENT, LABELS).item()
    assert found.total.item() == pytest.approx(0.5 * found.hard.item() + found.soft.item())


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_logits_cost_nothing_and_ask_for_nothing(name: str):
    student = TEACHER.clone().requires_grad_()
    loss = soft_loss(CONFIGS[name], student, TEACHER, LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "start",
    [
        torch.zeros(3, 4),  # a student that knows nothing yet
        torch.tensor([[60.0, -60.0, 0.0, 0.0]]).repeat(3, 1),  # one that is far too sure
    ],
    ids=["uniform", "certain"],
)
def test_gradients_are_finite_from_any_start(name: str, start):
    for teacher in (TEACHER, TEACHER * 20, torch.zeros(3, 4)):
        for rows in (3, 1):
            student = start[:rows].clone().requires_grad_()
            loss = soft_loss(CONFIGS[name], student, teacher[:rows], LABELS[:rows])
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_term_can_be_descended(name: str):
    student = STUDENT.clone().requires_grad_()
    optimizer = torch.optim.SGD([student], lr=0.2)
    before = soft_loss(CONFIGS[name], student, TEACHER, LABELS).item()
    for _ in range(100):
        optimizer.zero_grad()
        soft_loss(CONFIGS[name], student, TEACHER, LABELS).backward()
        optimizer.step()
    assert soft_loss(CONFIGS[name], student, TEACHER, LABELS).item() < before / 2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_soft_term_of_a_batch_is_chosen_by_the_configuration(name: str):
    config = CONFIGS[name].model_copy(update={"hard_weight": 0.0, "soft_weight": 3.0})
    found = DistillationLoss(config)(STUDENT, None, LABELS, TEACHER)
    assert found.soft.item() == soft_loss(CONFIGS[name], STUDENT, TEACHER, LABELS).item() > 0
    assert found.total.item() == pytest.approx(3 * found.soft.item())


def test_options_without_effect_are_refused():
    for given in (
        {"soft": "kl", "dkd_target_weight": 2.0},
        {"soft": "dist", "dkd_other_weight": 2.0},
        {"soft": "dkd", "dist_inter_weight": 1.0},
        {"soft": "mse", "temperature": 4.0},
        {"soft": "dist", "standardise": True},
    ):
        name = next(key for key in given if key != "soft")
        with pytest.raises(ValueError, match=f"'{name}' has no effect with soft"):
            LossConfig(**given)
    with pytest.raises(ValueError, match="are both 0"):
        LossConfig(soft="dkd", dkd_target_weight=0, dkd_other_weight=0)
    with pytest.raises(ValueError, match="are both 0"):
        LossConfig(soft="dist", dist_inter_weight=0, dist_intra_weight=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_written_out_in_full_is_read_back(name: str):
    # stage.json holds every key, those of other terms too.
    assert LossConfig(**CONFIGS[name].model_dump()) == CONFIGS[name]
