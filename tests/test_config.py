"""Configuration: precedence, types by field, and refusals that name key, file and nearest valid
key.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import CONFIGS

from bert_kd.config import PRESETS, Config, LossConfig, StudentConfig, TrainingConfig
from bert_kd.config_file import load_config
from bert_kd.errors import ConfigError


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path):
    config = load_config(path)
    assert config.students and config.run.parts[0] == "runs"


def test_precedence_is_default_file_command_line(tmp_path: Path):
    assert load_config().teacher.epochs == "auto"
    path = tmp_path / "a.toml"
    path.write_text("[teacher]\nepochs = 5\nseed = 4\n")
    config = load_config(path, ["teacher.epochs=7"])
    assert (config.teacher.epochs, config.teacher.seed, config.teacher.batch_size) == (7.0, 4, 32)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("teacher.learning_rate=1e-4", lambda c: c.teacher.learning_rate == 1e-4),
        ("teacher.bf16=true", lambda c: c.teacher.bf16 is True),
        ("teacher.unfreeze.last_layers=2", lambda c: c.teacher.unfreeze.last_layers == 2),
        ("teacher.unfreeze.last_layers=all", lambda c: c.teacher.unfreeze.last_layers == "all"),
        ("teacher.layer_decay=0.9", lambda c: c.teacher.layer_decay == 0.9),
        ("teacher.class_weights=[1, 2.5]", lambda c: c.teacher.class_weights == (1.0, 2.5)),
        ("data.source=123", lambda c: c.data.source == "123"),
        ("data.text_b=none", lambda c: c.data.text_b is None),
        ("data.transfer=['a.tsv']", lambda c: c.data.transfer == ("a.tsv",)),
        ("run=some/where", lambda c: c.run == Path("some/where")),
        ("students.base.seeds=[1,2]", lambda c: c.students[0].seeds == (1, 2)),
        ("students.0.model.layers=2", lambda c: c.students[0].model.layers == 2),
        ("students.base.loss.preset=hinton", lambda c: c.students[0].loss.soft == "kl"),
    ],
)
def test_overrides_are_read_by_the_fields_type(override: str, read):
    assert read(load_config(None, [override]))


def test_members_of_an_ensemble_differ_by_their_seed_alone():
    teacher = load_config(None, ["teacher.ensemble=3", "teacher.seed=5"]).teacher
    assert [member.seed for member in teacher.members] == [5, 6, 7]
    alone = load_config(None, ["teacher.seed=5"]).teacher
    assert teacher.members[0] == alone and teacher.telling == alone.telling
    assert teacher.members[1].telling | {"seed": 5} == alone.telling


def test_what_changes_nothing_does_not_tell_teachers_apart():
    plain = load_config().teacher.telling
    assert not {"layer_decay", "r_drop"} & set(plain)
    for override in ("teacher.layer_decay=0.9", "teacher.r_drop=1", "teacher.pooling=mean"):
        assert load_config(None, [override]).teacher.telling != plain
    # As of a time when this was what there was.
    for override in ("teacher.pooling=cls", "teacher.fine_tune=false"):
        assert "pooling" not in load_config(None, [override]).teacher.telling


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.epoch=3", "unknown key 'teacher.epoch' (did you mean 'epochs'?)"),
        ("teecher.epochs=3", "unknown key 'teecher' (did you mean 'teacher'?)"),
        ("teacher.epochs=x", "valid number"),
        ("teacher.epochs=-1", "greater than 0"),
        ("teacher.layer_decay=0", "greater than 0"),
        ("teacher.layer_decay=1.1", "less than or equal to 1"),
        ("teacher.r_drop=-1", "greater than or equal to 0"),
        ("teacher={fine_tune=false, ensemble=2}", "it needs fine_tune = true"),
        ("teacher={fine_tune=false, pooling='mean'}", "the pooling is the model's own"),
        ("teacher={seed=4294967295, ensemble=2}", "go beyond"),
        ("teacher", "expected section.key=value"),
        ("students.bas.seeds=[1]", "no student is named 'bas' (did you mean 'base'?)"),
        ("students.base.loss.soft=mae", "'dkd' or 'dist' (did you mean 'mse'?)"),
        ("students.base.loss.alpha=1", "students.base.loss has: dist_inter_weight, "),
        (
            "students.base.loss.dkd_other_weight=4",
            "'dkd_other_weight' has no effect with soft = \"kl\"",
        ),
        ("data.source.deep=1", "'data.source' has no keys below it"),
        ("students.base.embedding.start=file", "'file' belongs to start"),
        ("students.base.name=a b", "match pattern"),
        ("students.base.seeds=[8, 8]", "the same value stands twice"),
        ("students.base.seeds=[-1]", "greater than or equal to 0"),
        ("evaluate.splits=['test', 'test']", "the same value stands twice"),
        ("teacher.epochs=inf", "finite number"),
        ("students.base.training.learning_rate=inf", "finite number"),
        ("run=", "'run=': the path is empty"),
        ("run=~nobody-of-this-name/x", "the home folder in ~nobody-of-this-name/x is not known"),
        ("data.transfer=pool.jsonl", "give a list, such as ['pool.jsonl']"),
        ("students.base.seeds=1", "give a list, such as [1]"),
    ],
)
def test_bad_overrides_are_refused(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[teacher]\nmodell = 1", "unknown key 'teacher.modell' (did you mean 'model'?)"),
        ("[teacher.unfreeze]\nlast_layers = 0", "teacher.unfreeze.last_layers = 0"),
        (
            '[[students]]\nname = "a"\n[students.loss]\nsofty = 1',
            "unknown key 'students.0.loss.softy'",
        ),
        ('[[students]]\nname = "a"\n[[students]]\nname = "a"', "'a' stands twice"),
        ("[[students]]\n", "students.0.name is missing"),
        ("a = ", "a.toml"),
        (
            '[[students]]\nname = "a"\n[students.loss]\nsoft = "distt"',
            "students.0.loss.soft = 'distt': input should be 'mse', 'kl', 'soft_ce', 'dkd' or "
            "'dist' (did you mean 'dist'?)",
        ),
        ("[students.loss]", "write [[students]] with two brackets"),
    ],
)
def test_bad_files_are_refused_with_file_and_key(tmp_path: Path, text: str, message: str):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and "a.toml" in str(caught.value)


def test_paths_know_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    config = load_config(None, ["run=~/runs/a", "students.base.start_from=~/b"])
    assert config.run == Path("/home/user/runs/a")
    assert config.students[0].start_from == Path("/home/user/b")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    path = tmp_path / "a.toml"
    path.write_text('run = "runs/é"', encoding="utf-8-sig")
    assert load_config(path).run == Path("runs/é")


@pytest.mark.parametrize("content", ["[1]", '{"config": 3}'])
def test_json_without_an_object_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="no JSON object"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")


def test_a_stage_file_reproduces_its_configuration(tmp_path: Path):
    config = load_config(CONFIGS / "demo.toml", ["teacher.epochs=2"])
    path = tmp_path / "stage.json"
    path.write_text(json.dumps({"stage": "x", "config": config.model_dump(mode="json")}))
    assert load_config(path) == config


def test_the_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().run = Path("elsewhere")


def test_sizes_fill_what_is_not_given():
    nano = StudentConfig(name="small", size="nano", model={"layers": 2})
    assert (nano.embedding.size, nano.model.hidden_size, nano.model.layers) == (64, 64, 2)
    assert StudentConfig(name="base", size="base") == StudentConfig(name="base")
    wide = StudentConfig(name="wide", size="large", embedding={"size": 100})
    assert (wide.embedding.size, wide.model.hidden_size) == (100, 256)
    again = StudentConfig.model_validate(wide.model_dump(mode="json"))
    assert again == wide  # what a stage records gives the same student


@pytest.mark.parametrize(("classes", "pair"), [(2, False), (77, False), (2, True)])
def test_nano_has_at_most_660_000_parameters(classes: int, pair: bool):
    from bert_kd.student.model import BiLSTM, Shape, count_parameters

    nano = StudentConfig(name="small", size="nano")
    shape = Shape(
        vocabulary=nano.vocabulary.size,
        embedding=nano.embedding.size,
        hidden=nano.model.hidden_size,
        layers=nano.model.layers,
        pooling=nano.model.pooling,
        dense=nano.model.dense,
        classes=classes,
        pair=pair,
        match=pair,
    )
    assert count_parameters(BiLSTM(shape))[0] <= 660_000


def test_presets_fill_what_is_not_given():
    for name, values in PRESETS.items():
        loss = LossConfig(preset=name)
        assert all(getattr(loss, key) == value for key, value in values.items())
    assert LossConfig(preset="hinton", temperature=2.0).temperature == 2.0
    with pytest.raises(ValueError, match="nothing would be learned"):
        LossConfig(hard_weight=0, soft_weight=0)


@pytest.mark.parametrize(
    ("rows", "epochs", "twin_epochs"),
    [
        (0, 60, 60),
        (100, 60, 60),
        (2_000, 50, 50),
        (5_000, 20, 20),
        (17_000, 8, 20),
        (40_000, 8, 10),
        (150_000, 5, 6),
        (1_000_000, 4, 6),
    ],
)
def test_more_rows_are_seen_less_often(rows, epochs, twin_epochs):
    settings = TrainingConfig()
    assert settings.epochs_over(rows) == epochs
    assert settings.epochs_over(rows, twin=True) == twin_epochs
    assert settings.epochs_over(rows, gold=True) == twin_epochs
    asked = TrainingConfig(epochs=3, twin_epochs=5)
    assert (asked.epochs_over(rows), asked.epochs_over(rows, twin=True)) == (3, 5)
