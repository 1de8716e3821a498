"""Cached states of frozen layers: the same training, less work, and a kill that loses little."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_teachers import LABELS, settings, small_data, some_texts
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from bert_kd.errors import TeacherError
from bert_kd.teacher import prefix as prefix_module
from bert_kd.teacher.encoding import Padding, batch, encode
from bert_kd.teacher.finetune import finetune
from bert_kd.teacher.model import load_base
from bert_kd.teacher.parts import freeze
from bert_kd.teacher.prefix import Prefix, States, cache_states
from bert_kd.teacher.trainer import TeacherTrainer

CACHED = {"cache_prefix": True, "last_layers": 1, "bf16": False}


@pytest.fixture
def teacher(two_layers):
    return load_base(settings(two_layers), LABELS)


@pytest.fixture
def encoded(teacher):
    return encode(teacher.tokenizer, [(some_texts(20, 1)[0], None)], 16)


def cached(teacher, encoded, folder, key="one") -> tuple[Prefix, States]:
    found = Prefix(teacher.model, 1)
    padding = Padding.of(teacher.tokenizer)
    return found, cache_states(found, {"train": encoded}, padding, folder, key)["train"]


def test_reading_the_states_gives_the_logits_of_running_the_layers(teacher, encoded, tmp_path):
    padding = Padding.of(teacher.tokenizer)
    rows = np.array([4, 0, 19, 7])
    prefix, states = cached(teacher, encoded, tmp_path)
    inputs = batch(encoded, rows, padding)
    teacher.model.eval()
    with torch.inference_mode():
        whole = teacher.model(**inputs).logits
        prefix.skip()
        prefix.give(states.padded(rows, padding))
        read = teacher.model(**inputs).logits
        prefix.restore()
        again = teacher.model(**inputs).logits
    assert torch.allclose(whole, read, atol=2e-3) and not torch.equal(whole, read)
    assert torch.equal(whole, again)


def test_padding_on_the_left_stays_there(teacher, encoded, tmp_path):
    _, states = cached(teacher, encoded, tmp_path)
    rows = np.array([int(encoded.tokens.lengths.argmin()), int(encoded.tokens.lengths.argmax())])
    right = states.padded(rows, Padding(0, 0, left=False))
    left = states.padded(rows, Padding(0, 0, left=True))
    length = int(encoded.tokens.lengths[rows[0]])
    assert torch.equal(left[0, -length:], right[0, :length])
    assert not left[0, :-length].any() and not right[0, length:].any()
    assert torch.equal(left[1], right[1])


def reference(monkeypatch) -> None:
    """Let the trainer run the frozen layers of every batch, in eval mode and rounded as on disk."""
    plain = TeacherTrainer.compute_loss

    def compute_loss(self, model, inputs, *given, **named):
        if self.prefix is not None:
            was_training = model.training
            self.prefix.restore()
            asked = {n: v for n, v in inputs.items() if n not in ("labels", "prefix_states")}
            states = self.prefix.compute(asked)
            model.train(was_training)
            self.prefix.skip()
            inputs = {**inputs, "prefix_states": states.to(torch.float16).clone()}
        return plain(self, model, inputs, *given, **named)

    monkeypatch.setattr(TeacherTrainer, "compute_loss", compute_loss)


def test_training_equals_that_with_frozen_layers_in_eval_mode(two_layers, run, monkeypatch):
    prepared = small_data(run)
    facts = finetune(settings(two_layers, **CACHED), run, prepared)
    ours = load_file(run.teacher / "model.safetensors")
    assert not run.prefix_of(run.teacher).exists()
    reference(monkeypatch)
    again = finetune(settings(two_layers, **CACHED), run, prepared)
    theirs = load_file(run.teacher / "model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    assert facts["best"]["nll"] == pytest.approx(again["best"]["nll"], abs=1e-4)


def test_frozen_layers_stay_and_are_not_run(two_layers, run, monkeypatch):
    before = load_base(settings(two_layers), LABELS).model.state_dict()
    computed = []
    compute = Prefix.compute
    monkeypatch.setattr(
        Prefix, "compute", lambda self, inputs: computed.append(1) or compute(self, inputs)
    )
    finetune(settings(two_layers, epochs=3, **CACHED), run, small_data(run))
    assert len(computed) == 2  # a batch for each split, however many epochs there are
    after = load_file(run.teacher / "model.safetensors")
    assert torch.equal(
        before["bert.encoder.layer.0.output.dense.weight"],
        after["bert.encoder.layer.0.output.dense.weight"],
    )
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(before[name], after[name])


def test_a_killed_computation_goes_on(teacher, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_module, "ROWS_AT_ONCE", 5)
    whole = np.array(cached(teacher, encoded, tmp_path / "whole")[1].values)
    calls = []
    compute = Prefix.compute

    def dying(self, inputs):
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 3:
            raise RuntimeError("killed")
        return compute(self, inputs)

    monkeypatch.setattr(Prefix, "compute", dying)
    with pytest.raises(RuntimeError, match="killed"):
        cached(teacher, encoded, tmp_path / "killed")
    _, states = cached(teacher, encoded, tmp_path / "killed")
    assert calls == [5] * 5  # of four windows, the one in hand was lost
    np.testing.assert_array_equal(states.values, whole)
    cached(teacher, encoded, tmp_path / "killed")
    assert len(calls) == 5
    cached(teacher, encoded, tmp_path / "killed", key="other settings")
    assert len(calls) == 9


def test_a_disk_too_small_is_refused_before_any_work(teacher, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(
        prefix_module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})
    )
    monkeypatch.setattr(Prefix, "compute", lambda *given: pytest.fail("it was begun"))
    with pytest.raises(TeacherError, match=r"GB are free.*cache_prefix = false"):
        cached(teacher, encoded, tmp_path)


def test_without_frozen_layers_it_is_refused(two_layers, run):
    for wrong in ({"last_layers": "all"}, {"last_layers": 1, "fine_tune": False}):
        with pytest.raises(ValidationError, match="cache_prefix needs frozen layers"):
            settings(two_layers, cache_prefix=True, **wrong)
    with pytest.raises(TeacherError, match="all 2 encoder layers train"):
        finetune(settings(two_layers, cache_prefix=True, last_layers=2), run, small_data(run))


def test_the_head_alone_trains_on_the_states_of_the_last_layer(two_layers, run):
    config = settings(two_layers, cache_prefix=True, last_layers="head")
    facts = finetune(config, run, small_data(run))
    assert [group["name"] for group in facts["trainable"]["groups"] if group["trains"]] == [
        "pooler",
        "head",
    ]


def test_other_architectures(tmp_path):
    torch.manual_seed(1)
    shape = DistilBertConfig(
        vocab_size=30, dim=16, hidden_dim=32, n_layers=3, n_heads=2, max_position_embeddings=20
    )
    model = DistilBertForSequenceClassification(shape).eval()
    freeze(model, 1)
    prefix = Prefix(model, 1)
    inputs = {
        "input_ids": torch.randint(1, 30, (2, 7)),
        "attention_mask": torch.ones(2, 7, dtype=torch.long),
    }
    states = prefix.compute(inputs)
    with torch.inference_mode():
        whole = model(**inputs).logits
        prefix.skip()
        prefix.give(states)
        read = model(**inputs).logits
    assert torch.equal(whole, read)
