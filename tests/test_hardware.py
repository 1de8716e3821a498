"""What settings of `auto` come to on this machine or another."""

from __future__ import annotations

import pytest
import torch

from bert_kd.config import LogitsConfig, TeacherConfig
from bert_kd.hardware import computes_bf16, precision_of


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert computes_bf16() is expected
    assert precision_of("auto") == ("bf16" if expected else "fp32")
    assert (precision_of("fp32"), precision_of("bf16")) == ("fp32", "bf16")


@pytest.mark.parametrize("supported", [True, False])
def test_with_a_gpu_it_is_the_gpu_that_counts(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert computes_bf16() is supported


def test_an_older_torch_that_does_not_tell_is_taken_not_to(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_bf16() is False


def test_teachers_go_by_the_machine_unless_told():
    assert TeacherConfig().bf16 == "auto" and LogitsConfig().precision == "auto"
