"""The loss against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bert_kd.errors import TeacherError
from bert_kd.teacher.objective import class_weights, r_drop_loss, weighted_loss

# Softmax of these: (1/4, 3/4) and (2/3, 1/3).
LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(2.0), 0.0]])
GOLD = torch.tensor([0, 1])


def test_plain_loss_is_the_mean_cross_entropy():
    loss = weighted_loss(LOGITS, GOLD, torch.ones(2), 0.0)
    assert loss.item() == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_class_weights_weigh_rows_by_their_class():
    # Rows cost ln 4 (class 0, weight 1) and ln 3 (class 1, weight 3); divided by 1 + 3.
    loss = weighted_loss(LOGITS, GOLD, torch.tensor([1.0, 3.0]), 0.0)
    assert loss.item() == pytest.approx((math.log(4) + 3 * math.log(3)) / 4)


def test_smoothing_and_weights_together():
    # ε = 0.2 over 2 classes: q = (0.9, 0.1) for row 1, (0.1, 0.9) for row 2; w = (1, 3).
    first = 1 * 0.9 * math.log(4) + 3 * 0.1 * math.log(4 / 3)
    second = 1 * 0.1 * math.log(3 / 2) + 3 * 0.9 * math.log(3)
    loss = weighted_loss(LOGITS, GOLD, torch.tensor([1.0, 3.0]), 0.2)
    assert loss.item() == pytest.approx((first + second) / 4)


def test_parts_of_an_accumulated_batch_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    logits, gold = torch.randn(10, 3, generator=generator), torch.arange(10) % 3
    weights = torch.tensor([0.5, 1.0, 4.0])
    whole = cross_entropy(logits, gold, weight=weights, label_smoothing=0.1)
    total = weights[gold].sum()
    parts = [
        weighted_loss(logits[rows], gold[rows], weights, 0.1, total)
        for rows in (slice(0, 3), slice(3, 10))
    ]
    assert sum(parts).item() == pytest.approx(whole.item())


def test_r_drop_equals_the_formula():
    # One row twice: P = (1/4, 3/4), Q = (2/3, 1/3); the gold label is class 0.
    kl_pq = 1 / 4 * math.log(1 / 4 / (2 / 3)) + 3 / 4 * math.log(3 / 4 / (1 / 3))
    kl_qp = 2 / 3 * math.log(2 / 3 / (1 / 4)) + 1 / 3 * math.log(1 / 3 / (3 / 4))
    hard = (math.log(4) + math.log(3 / 2)) / 2
    loss = r_drop_loss(LOGITS, torch.tensor([0]), torch.ones(2), 0.0, 3.0)
    assert loss.item() == pytest.approx(hard + 3.0 * (kl_pq + kl_qp) / 2)


def test_r_drop_is_nothing_where_both_passes_agree():
    logits, weights = torch.cat([LOGITS, LOGITS]), torch.tensor([1.0, 3.0])
    loss = r_drop_loss(logits, GOLD, weights, 0.1, 5.0)
    assert loss.item() == pytest.approx(weighted_loss(LOGITS, GOLD, weights, 0.1).item())


def test_r_drop_of_an_accumulated_batch_adds_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 10, 3, generator=generator)
    gold, weights = torch.arange(10) % 3, torch.tensor([0.5, 1.0, 4.0])
    whole = r_drop_loss(torch.cat([first, second]), gold, weights, 0.1, 2.0)
    total = weights[gold].sum()
    parts = [
        r_drop_loss(torch.cat([first[rows], second[rows]]), gold[rows], weights, 0.1, 2.0, total)
        for rows in (slice(0, 3), slice(3, 10))
    ]
    assert sum(parts).item() == pytest.approx(whole.item())
    # A row's second term has the weight of its class, too.
    alone = [
        r_drop_loss(torch.stack([first[row], second[row]]), gold[[row]], torch.ones(3), 0.0, 2.0)
        for row in range(10)
    ]
    weighed = sum(weights[gold[row]] * alone[row] for row in range(10)) / total
    unsmoothed = r_drop_loss(torch.cat([first, second]), gold, weights, 0.0, 2.0)
    assert unsmoothed.item() == pytest.approx(weighed.item())


def test_balanced_weights_are_rows_over_classes_times_class_rows():
    weights = class_weights("balanced", np.array([0, 0, 0, 1]), ("a", "b"))
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])


def test_listed_weights_are_taken_in_label_order_and_counted():
    gold = np.array([0, 1])
    assert class_weights((1.0, 2.5), gold, ("a", "b")).tolist() == [1.0, 2.5]
    assert class_weights("none", gold, ("a", "b")).tolist() == [1.0, 1.0]
    with pytest.raises(TeacherError, match="3 weights, but the data has 2 classes"):
        class_weights((1.0, 2.0, 3.0), gold, ("a", "b"))
