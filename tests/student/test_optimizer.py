"""The embedding's optimizer moves rows as AdamW does, though it waits until they are read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from bert_kd.config import TrainingConfig
from bert_kd.student.optimizer import DeferredAdamW, StudentOptimizer

ROWS, SIZE, STEPS = 300, 6, 700
"""Steps: more than twice as many as the optimizer remembers."""


def batches(generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Ids [12], frequent and rare ones and repeated, and what their rows are pulled towards."""
    return [
        (
            (torch.rand(12, generator=generator) ** 4 * ROWS).long(),
            torch.randn(12, SIZE, generator=generator),
        )
        for _ in range(STEPS)
    ]


def step(table: nn.Parameter, optimizer: torch.optim.Optimizer, ids: Tensor, aims: Tensor) -> None:
    """One step on a loss whose gradients are of very different sizes."""
    sparse = isinstance(optimizer, DeferredAdamW)
    if sparse:
        optimizer.catch_up(ids)
    optimizer.zero_grad()
    scale = 10.0 ** (ids % 4 - 2.0).unsqueeze(1)
    (scale * (embedding(ids, table, sparse=sparse) - aims) ** 2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.5])
def test_rows_are_moved_as_by_adamw(weight_decay):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(ROWS, SIZE, generator=generator)
    dense, deferred = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.01, "weight_decay": weight_decay, "eps": 1e-12}
    plain = torch.optim.AdamW([dense], **settings)
    optimizer = DeferredAdamW(deferred, **settings)
    for number, (ids, aims) in enumerate(batches(generator)):
        for found in (plain, optimizer):
            found.param_groups[0]["lr"] = 0.01 * min((number + 1) / 20, 1 - number / STEPS)
        optimizer.catch_up(ids)
        assert torch.allclose(deferred[ids], dense[ids], atol=2e-5)
        step(dense, plain, ids, aims)
        step(deferred, optimizer, ids, aims)
    optimizer.catch_up()
    assert torch.allclose(deferred, dense, atol=2e-5)
    assert (dense - start).abs().max() > 0.3


def test_lazy_adam_would_fail_here():
    """What the comparison above can tell: torch's SparseAdam leaves rare rows behind."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(ROWS, SIZE, generator=generator)
    tables = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [
        torch.optim.SparseAdam([tables[0]], lr=0.01),
        DeferredAdamW(tables[1], lr=0.01, weight_decay=0.0),
    ]
    for ids, aims in batches(generator):
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            if isinstance(optimizer, DeferredAdamW):
                optimizer.catch_up(ids)
            ((embedding(ids, table, sparse=True) - aims) ** 2).sum().backward()
            optimizer.step()
    optimizers[1].catch_up()
    lazy, deferred = ((table - start).norm(dim=1) for table in tables)
    rare = slice(ROWS // 2, None)
    assert deferred[rare].sum() > 2 * lazy[rare].sum()


def test_a_row_that_no_batch_reads_stays_but_for_weight_decay():
    table = nn.Parameter(torch.ones(4, 3))
    optimizer = DeferredAdamW(table, lr=0.1, weight_decay=0.1)
    for _ in range(300):
        step(table, optimizer, torch.tensor([0, 1]), torch.zeros(2, 3))
    optimizer.catch_up()
    assert torch.allclose(table[2:], torch.full((2, 3), 0.99**300), rtol=1e-4)


@pytest.mark.parametrize("stop", [1, 255, 256, 300])
def test_a_restored_state_goes_on_with_the_same_bits(stop):
    generator = torch.Generator().manual_seed(2)
    work = batches(generator)[:400]
    table = nn.Parameter(torch.randn(ROWS, SIZE, generator=generator))
    optimizer = DeferredAdamW(table, lr=0.01)
    for number, (ids, aims) in enumerate(work):
        if number == stop:
            saved, state = table.detach().clone(), copy.deepcopy(optimizer.state_dict())
        step(table, optimizer, ids, aims)
    again = nn.Parameter(saved)
    restored = DeferredAdamW(again, lr=0.01)
    restored.load_state_dict(state)
    for ids, aims in work[stop:]:
        step(again, restored, ids, aims)
    for found in (optimizer, restored):
        found.catch_up()
    assert torch.equal(again, table)


def test_a_step_without_a_gradient_changes_nothing():
    table = nn.Parameter(torch.ones(4, 3))
    optimizer = DeferredAdamW(table, lr=0.1)
    optimizer.catch_up()
    optimizer.step()
    assert torch.equal(table, torch.ones(4, 3))


def test_small_gradients_are_divided_by_as_much_as_adamw_divides_them():
    generator = torch.Generator().manual_seed(3)
    start = torch.zeros(ROWS, SIZE)
    dense, deferred = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    plain = torch.optim.AdamW([dense], lr=0.01)
    optimizer = DeferredAdamW(deferred, lr=0.01)
    for ids, directions in batches(generator)[:40]:  # long before the bias of moments is gone
        for table, found in ((dense, plain), (deferred, optimizer)):
            if found is optimizer:
                optimizer.catch_up(ids)
            found.zero_grad()
            (embedding(ids, table, sparse=found is optimizer) * 1e-6 * directions).sum().backward()
            found.step()
    optimizer.catch_up()
    assert (deferred - dense).norm() < 0.03 * dense.norm()


def test_rows_that_were_not_named_are_refused():
    table = nn.Parameter(torch.ones(4, 3))
    optimizer = DeferredAdamW(table, lr=0.1)
    step(table, optimizer, torch.tensor([0]), torch.zeros(1, 3))
    optimizer.zero_grad()
    embedding(torch.tensor([0, 1]), table, sparse=True).sum().backward()
    with pytest.raises(RuntimeError, match="without catch_up"):
        optimizer.step()


@pytest.mark.parametrize(("clip", "norm"), [(2.6, 2.6), (13.0, 13.0), (20.0, 13.0), (0.0, 13.0)])
def test_a_step_is_of_gradients_whose_common_norm_is_clipped(clip, norm):
    # A sparse gradient of 12, by two reads of one row, and a dense one of 5: together 13.
    dense, table = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4, 1))
    optimizer = StudentOptimizer([dense], table, TrainingConfig(clip=clip), 1.0)
    ids = torch.tensor([1, 1])
    optimizer.begin(0.1)
    optimizer.catch_up(ids)
    read = embedding(ids, table, sparse=True)
    ((dense * torch.tensor([3.0, 4.0])).sum() + (6 * read).sum()).backward()
    optimizer.step()
    share = norm / 13
    assert torch.allclose(dense.grad, share * torch.tensor([3.0, 4.0]))
    assert torch.allclose(
        table.grad.to_dense().ravel(), share * torch.tensor([0.0, 12.0, 0.0, 0.0])
    )
    # What the optimizers have read is what was clipped: of Adam the first moment is a tenth of it.
    assert torch.allclose(optimizer.tensors()["0.0.exp_avg"], 0.1 * dense.grad)
    assert optimizer.tensors()["1.0.moments"][1, 0].item() == pytest.approx(1.2 * share)
