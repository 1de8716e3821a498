"""Answers of a teacher: in the order given, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_teachers import small_tokenizer, some_texts
from transformers import AutoModelForSequenceClassification, RobertaConfig

from bert_kd.errors import TeacherError
from bert_kd.teacher.answer import Answering, answer, measure_bf16
from bert_kd.teacher.encoding import Padding, batch, encode
from bert_kd.teacher.model import Teacher

TEXTS = some_texts(20, 11)[0]


def test_padding_does_not_change_logits(trained):
    alone = np.concatenate([answer(trained, [text]).logits for text in TEXTS])
    together = answer(trained, TEXTS).logits
    assert together.dtype == np.float32 and together.shape == (20, 2)
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_a_model_that_pads_with_one(side):
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tokenizer = small_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = "[UNK]", side  # [UNK] has id 1
    # Padding on the left stands where RoBERTa's head reads: there only the ids are compared.
    inputs = batch(encode(tokenizer, [(TEXTS, None)], 16), np.arange(20), Padding.of(tokenizer))
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 1).all()
    assert (inputs["attention_mask"][:, 0 if side == "right" else -1] == 1).all()
    if side == "right":
        teacher = Teacher(model, tokenizer, ("a", "b"), 16)
        alone = np.concatenate([answer(teacher, [text]).logits for text in TEXTS])
        np.testing.assert_allclose(answer(teacher, TEXTS).logits, alone, atol=1e-6)


def test_small_batches_answer_like_large_ones(trained):
    np.testing.assert_allclose(
        answer(trained, TEXTS, tokens_per_batch=16).logits, answer(trained, TEXTS).logits, atol=1e-6
    )


def test_columns_are_put_in_the_datas_order(trained):
    turned = Teacher(trained.model, trained.tokenizer, trained.labels, 16, (1, 0))
    assert (answer(turned, TEXTS).logits == answer(trained, TEXTS).logits[:, ::-1]).all()


def test_the_second_text_counts(trained):
    pairs = answer(trained, TEXTS, TEXTS[::-1]).logits
    assert pairs.shape == (20, 2) and (pairs != answer(trained, TEXTS).logits).any()
    encoded = encode(trained.tokenizer, [(["fine"], ["a film"])], 16)
    assert encoded.types.tolist() == [0, 0, 0, 1, 1, 1]


def test_cut_texts_are_counted(trained):
    answering = Answering(trained)
    fits = " ".join(["film"] * 14)  # with [CLS] and [SEP]: 16, the maximum length
    answering(["fine", fits, fits + " here"], None)
    assert answering.cut == 1


def run_out_of_memory(monkeypatch, model, error, limit):
    """Let the model fail for batches of more than `limit` padded tokens; return the sizes tried."""
    tried = []
    original = model.forward

    def forward(**inputs):
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > limit:
            raise error
        return original(**inputs)

    monkeypatch.setattr(model, "forward", forward)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
)
def test_batches_are_halved_when_memory_runs_out(trained, monkeypatch, error, capfd):
    expected = answer(trained, TEXTS).logits
    tried = run_out_of_memory(monkeypatch, trained.model, error, limit=70)
    answering = Answering(trained, tokens_per_batch=256)
    np.testing.assert_allclose(answering(TEXTS, None).logits, expected, atol=1e-6)
    assert answering.tokens_per_batch <= 70
    failures = [size for size in tried if size > 70]
    assert 1 <= len(failures) <= 3
    assert "memory ran out: going on with" in capfd.readouterr().err
    # The next texts start with what fitted.
    tried.clear()
    answering(TEXTS, None)
    assert max(tried) <= 70


def test_a_single_text_that_does_not_fit_is_named(trained, monkeypatch):
    run_out_of_memory(monkeypatch, trained.model, MemoryError(), limit=2)
    with pytest.raises(TeacherError, match="a single text of 16 wordpieces"):
        answer(trained, [" ".join(["film"] * 30), "fine"])


def test_other_errors_are_not_taken_for_memory(trained, monkeypatch):
    run_out_of_memory(monkeypatch, trained.model, RuntimeError("shapes differ"), limit=2)
    with pytest.raises(RuntimeError, match="shapes differ"):
        answer(trained, TEXTS)


def test_features_are_the_poolers(trained):
    found = answer(trained, TEXTS, features=True, tokens_per_batch=16)
    assert found.features.dtype == np.float16 and found.features.shape == (20, 16)
    model = trained.model
    head = found.features.astype(np.float32) @ model.classifier.weight.detach().numpy().T
    np.testing.assert_allclose(
        head + model.classifier.bias.detach().numpy(), found.logits, atol=2e-3
    )


def test_features_without_a_pooler_are_the_first_tokens():
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    teacher = Teacher(model, small_tokenizer(), ("a", "b"), 16)
    found = answer(teacher, TEXTS, features=True)
    with torch.inference_mode():
        state = torch.from_numpy(found.features.astype(np.float32))
        logits = model.classifier(state[:, None, :]).numpy()
    np.testing.assert_allclose(logits, found.logits, atol=2e-3)


def test_bf16_is_near_fp32_and_its_effect_is_measured(trained):
    weight = trained.model.classifier.weight.clone()
    effect = measure_bf16(trained, TEXTS, None, 8192)
    assert effect.rows == 20 and 0 < effect.mean <= effect.largest < 0.05
    exact, rounded = answer(trained, TEXTS), answer(trained, TEXTS, precision="bf16")
    assert rounded.logits.dtype == np.float32
    assert np.abs(exact.logits - rounded.logits).max() == pytest.approx(effect.largest)
    assert torch.equal(trained.model.classifier.weight, weight)


def test_no_texts(trained):
    assert answer(trained, []).logits.shape == (0, 2)
