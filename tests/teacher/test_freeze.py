"""What trains and what stays as it is, in several architectures."""

from __future__ import annotations

import pytest
import torch
from small_teachers import small_config
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)

from bert_kd.errors import TeacherError
from bert_kd.teacher.parts import add_head_units, freeze, output_layer, positions, rate_factors

SIZE = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
CONFIGS = {
    "electra": ElectraConfig(**SIZE, embedding_size=8),
    "roberta": RobertaConfig(**SIZE),
    "mpnet": MPNetConfig(**SIZE),
    "deberta": DebertaV2Config(**SIZE, relative_attention=True, position_buckets=4),
    "modernbert": ModernBertConfig(
        **{**SIZE, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2}
    ),
    "distilbert": DistilBertConfig(
        vocab_size=30,
        dim=16,
        n_layers=3,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
        num_labels=3,
    ),
}
# The head above the base model, and the last layer inside it, as each architecture calls them.
HEADS = {
    "electra": ("classifier.", "electra.encoder.layer.2."),
    "roberta": ("classifier.", "roberta.encoder.layer.2."),
    "mpnet": ("classifier.", "mpnet.encoder.layer.2."),
    "deberta": ("classifier.", "pooler.", "deberta.encoder.layer.2."),
    "modernbert": ("classifier.", "head.", "model.final_norm.", "model.layers.2."),
    "distilbert": ("classifier.", "pre_classifier.", "distilbert.transformer.layer.2."),
}


def trainable_names(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", CONFIGS)
def test_last_layer_and_head_train_in_every_architecture(kind):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind])
    trainable = freeze(model, 1)
    expected = {name for name, _ in model.named_parameters() if name.startswith(HEADS[kind])}
    assert trainable_names(model) == expected
    assert trainable.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable.parameters == sum(p.numel() for p in model.parameters())


def test_last_layers_are_layers_not_tensors():
    model = BertForSequenceClassification(small_config(layers=3))
    trainable = freeze(model, 2)
    names = trainable_names(model)
    assert {name.split(".")[3] for name in names if "encoder.layer" in name} == {"1", "2"}
    assert any("pooler" in name for name in names) and any("classifier" in name for name in names)
    assert not any("embeddings" in name for name in names)
    parts = {group.name: group.trains for group in trainable.groups}
    assert parts == {
        "embeddings": False,
        "layers 1 to 1": False,
        "layers 2 to 3": True,
        "pooler": True,
        "head": True,
    }
    assert f"{trainable.trainable:,}" in trainable.describe()


def test_all_and_head():
    model = BertForSequenceClassification(small_config(layers=2))
    assert freeze(model, "all").trainable == sum(p.numel() for p in model.parameters())
    freeze(model, "head")
    assert all("pooler" in name or "classifier" in name for name in trainable_names(model))
    # And back again: what was frozen before does not stay so.
    assert freeze(model, "all").trainable == sum(p.numel() for p in model.parameters())


def test_shared_layers_are_refused_with_the_reason():
    config = AlbertConfig(**SIZE, embedding_size=8)
    model = AlbertForSequenceClassification(config)
    with pytest.raises(TeacherError, match=r"share one set of weights.*\"all\" or \"head\""):
        freeze(model, 1)
    assert freeze(model, "head").trainable < freeze(model, "all").trainable


def test_a_decoder_above_the_encoder_is_refused():
    config = BartConfig(
        vocab_size=30,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=40,
    )
    with pytest.raises(TeacherError, match="has an encoder and a decoder"):
        freeze(AutoModelForSequenceClassification.from_config(config), 1)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(TeacherError, match="has 2 encoder layers: give at most 2"):
        freeze(BertForSequenceClassification(small_config(layers=2)), 3)


def test_rates_fall_by_the_layer_from_the_head_down():
    model = BertForSequenceClassification(small_config(layers=2))
    factors = rate_factors(model, 0.5)
    assert set(factors) == {name for name, _ in model.named_parameters()}
    for part, factor in (
        ("classifier.weight", 1.0),
        ("bert.pooler.dense.weight", 1.0),
        ("bert.encoder.layer.1.output.dense.weight", 0.5),
        ("bert.encoder.layer.0.attention.self.query.bias", 0.25),
        ("bert.embeddings.word_embeddings.weight", 0.125),
        ("bert.embeddings.LayerNorm.weight", 0.125),
    ):
        assert factors[part] == factor, part


@pytest.mark.parametrize("kind", CONFIGS)
def test_rates_of_head_last_layer_and_embeddings_in_every_architecture(kind):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind])
    factors = rate_factors(model, 0.5)
    layer = HEADS[kind][-1]
    for name, factor in factors.items():
        if name.startswith(HEADS[kind][:-1]):
            assert factor == 1, name
        elif name.startswith(layer):
            assert factor == 0.5, name
        elif name.startswith(layer.replace(".2.", ".0.")):
            assert factor == 0.125, name
        elif "embeddings" in name:
            assert factor == 0.0625, name


def test_layers_that_cannot_be_told_apart_have_no_rates_of_their_own():
    config = AlbertConfig(**SIZE, embedding_size=8)
    with pytest.raises(TeacherError, match="share one set of weights.*set teacher.layer_decay = 1"):
        rate_factors(AlbertForSequenceClassification(config), 0.9)


@pytest.mark.parametrize("kind", CONFIGS)
def test_head_units_stand_before_the_output(kind):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind]).eval()
    name = add_head_units(model, 5)
    head = model.get_submodule(name)
    assert [type(module) for module in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert head[0].out_features == 5 and head[3].out_features == 3
    ids = torch.tensor([[2, 5, 6, 3]])
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)
    freeze(model, "head")
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_output_layer_is_the_last_one_of_its_size():
    config = RobertaConfig(**{**SIZE, "num_labels": 16})  # the head's first layer is 16 wide, too
    model = AutoModelForSequenceClassification.from_config(config)
    assert output_layer(model)[0] == "classifier.out_proj"


def test_positions_know_about_the_padding_index():
    bert = BertForSequenceClassification(small_config())
    assert positions(bert) == 40
    assert positions(AutoModelForSequenceClassification.from_config(CONFIGS["roberta"])) == 38
