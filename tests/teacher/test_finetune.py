"""Fine-tuning: what moves, what comes out, and that a killed run ends like one that was not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_teachers import (
    LABELS,
    as_rows,
    resumable,
    settings,
    small_data,
    some_texts,
    write_data,
)
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from bert_kd.config import TeacherConfig
from bert_kd.errors import TeacherError
from bert_kd.store import RunFolder
from bert_kd.student.embeddings import has_trained_vectors
from bert_kd.teacher.answer import answer
from bert_kd.teacher.card import fingerprint_teacher
from bert_kd.teacher.finetune import finetune
from bert_kd.teacher.model import load_base, open_teacher
from bert_kd.teacher.objective import r_drop_loss
from bert_kd.teacher.trainer import (
    Plan,
    TeacherTrainer,
    _Buckets,
    learning_rate,
    out_of_patience,
)

HERE = Path(__file__).parent


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_frozen_parts_stay_and_the_last_layer_moves(two_layers, run):
    before = load_base(settings(two_layers), LABELS).model.state_dict()
    facts = finetune(settings(two_layers, epochs=1), run, small_data(run))
    after = weights(run.teacher)
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layer.1." in name or not is_below(name)}
    assert facts["trainable"]["trainable"] == sum(after[name].numel() for name in moved)


def test_token_vectors_that_train_are_kept_as_they_were(base, run):
    name = "bert.embeddings.word_embeddings.weight"
    before = load_base(settings(base), LABELS).model.state_dict()[name]
    finetune(settings(base, epochs=1), run, small_data(run))
    assert not run.base_of(run.teacher).exists()  # frozen: those of the teacher are the base's

    facts = finetune(settings(base, epochs=1, last_layers="all"), run, small_data(run))
    kept = weights(run.base_of(run.teacher))
    assert set(kept) == {name} and torch.equal(kept[name], before)
    assert not torch.equal(weights(run.teacher)[name], before)
    assert has_trained_vectors(run.teacher) and facts["trainable"]["groups"][0]["trains"]
    # It tells no teacher from another, and opens as ever.
    known = fingerprint_teacher(run.teacher, "fp32")
    shutil.rmtree(run.base_of(run.teacher))
    assert fingerprint_teacher(run.teacher, "fp32") == known
    assert open_teacher(run.teacher).labels == LABELS


def is_below(name: str) -> bool:
    return "embeddings" in name or "layer." in name


def test_the_teacher_learns_and_says_what_it_learned_from(base, run, capfd):
    prepared = small_data(run, train=96)
    config = settings(base, epochs=6, last_layers="all", evaluations_per_epoch=2)
    facts = finetune(config, run, prepared)
    texts, gold = some_texts(16, 3)
    answers = answer(open_teacher(run.teacher), texts).logits.argmax(axis=1)
    assert (answers == gold).mean() > 0.9

    written = json.loads((run.teacher / "teacher.json").read_text())
    assert written["labels"] == ["bad", "good"] and written["base"] == str(base)
    assert written["data"] == {n: prepared.fingerprints[n] for n in ("train", "validation")}
    assert len(written["history"]) == 12
    assert written["best"]["accuracy"] == max(entry["accuracy"] for entry in written["history"])
    assert written["best"] == facts["best"]
    assert not run.teacher_checkpoints.exists()
    said = capfd.readouterr()
    assert "parameters train" in said.err and "on validation" in said.err
    assert "unknown to the teacher" not in said.err
    assert said.out == ""


def test_a_teacher_of_another_language_is_said_to_be_one(base, run, capfd):
    texts = [f"房间很大 {number}" for number in range(16)]
    rows = as_rows(texts, np.arange(16) % 2)
    prepared = write_data(run, {"train": rows, "validation": rows})
    finetune(settings(base, epochs=1), run, prepared)
    assert "are unknown to the teacher" in capfd.readouterr().err


@pytest.mark.parametrize(("rows", "steps"), [(100, 80), (30_000, 188)])
def test_a_trial_sees_as_many_examples_at_most(rows: int, steps: int):
    config = TeacherConfig(epochs="auto", batch_size=32)
    assert Plan.of(config, rows, trial=True).steps == steps
    assert Plan.of(config, rows).steps >= steps
    numbered = TeacherConfig(epochs=3, batch_size=32)
    assert Plan.of(numbered, rows, trial=True) == Plan.of(numbered, rows)


@pytest.mark.parametrize("rows", [8, 13, 21])
def test_every_validation_row_counts(base, run, monkeypatch, rows: int):
    """Also those of a last batch that is not full: 8 rows a batch here."""
    seen: list[int] = []
    measured = TeacherTrainer.evaluation_loop

    def counted(self, *arguments, **named):
        found = measured(self, *arguments, **named)
        seen.append(len(found.label_ids))
        return found

    monkeypatch.setattr(TeacherTrainer, "evaluation_loop", counted)
    texts, gold = some_texts(rows, 2)
    splits = {"train": as_rows(*some_texts(24, 1)), "validation": as_rows(texts, gold)}
    facts = finetune(settings(base, epochs=1), run, write_data(run, splits))
    assert seen == [rows]
    answers = answer(open_teacher(run.teacher), texts).logits.argmax(axis=1)
    assert facts["best"]["accuracy"] == pytest.approx((answers == gold).mean())


def test_the_best_checkpoint_is_kept_not_the_last(base, run, monkeypatch):
    prepared = small_data(run)
    scores = iter([0.5, 0.9, 0.7, 0.6])
    kept = []
    original = TeacherTrainer._save_checkpoint

    def save(self, *given):
        kept.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return original(self, *given)

    monkeypatch.setattr(TeacherTrainer, "_save_checkpoint", save)
    monkeypatch.setattr(
        "bert_kd.teacher.trainer.measure",
        lambda logits, gold: {"accuracy": next(scores), "macro_f1": 0.0, "nll": 1.0},
    )
    facts = finetune(settings(base, epochs=4), run, prepared)
    assert facts["best"]["accuracy"] == 0.9 and facts["best"]["epoch"] == 2
    found = weights(run.teacher)
    assert all(torch.equal(found[name], value) for name, value in kept[1].items())


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1.0), ("nll", -1.0)])
def test_patience(base, metric, sign):
    config = settings(base, metric=metric, patience=2)
    history = [{"eval_nll": 0.0, f"eval_{metric}": sign * value} for value in (0.5, 0.7, 0.7, 0.6)]
    assert not out_of_patience(history[:3], config)
    assert out_of_patience(history, config)
    assert not out_of_patience(history, settings(base, metric=metric))


def test_training_stops_early(base, run, monkeypatch):
    monkeypatch.setattr(
        "bert_kd.teacher.trainer.measure",
        lambda logits, gold: {"accuracy": 0.5, "macro_f1": 0.0, "nll": 1.0},
    )
    facts = finetune(settings(base, epochs=9, patience=2), run, small_data(run))
    assert len(facts["history"]) == 3 and facts["best"]["step"] == facts["steps"] / 3


def test_a_diverging_training_is_refused(base, run):
    with pytest.raises(TeacherError, match="diverged.*lower teacher.learning_rate"):
        finetune(settings(base, learning_rate=1e30, warmup=0.0), run, small_data(run))


def test_evaluations_are_equal_parts_of_an_epoch():
    plan = Plan(steps=25, steps_per_epoch=10, evaluations_per_epoch=3)
    after = [step for step in range(1, 26) if plan.evaluates_after(step)]
    assert after == [4, 7, 10, 14, 17, 20, 24, 25]
    often = Plan(steps=3, steps_per_epoch=3, evaluations_per_epoch=10)
    assert [step for step in (1, 2, 3) if often.evaluates_after(step)] == [1, 2, 3]


@pytest.mark.parametrize(("rows", "epochs"), [(500, 20), (4_951, 13), (67_349, 3)])
def test_small_data_is_gone_over_more_often(rows: int, epochs: int):
    plan = Plan.of(TeacherConfig(epochs="auto", batch_size=32), rows)
    assert plan.steps == epochs * -(-rows // 32)


def test_wider_encoders_learn_in_smaller_steps(base, run, tmp_path):
    width = load_base(settings(base), LABELS).model.config.hidden_size
    data = small_data(run)
    facts = finetune(settings(base, epochs=1, learning_rate="auto"), run, data)
    assert facts["learning_rate"] == 2e-4 * 384 / width
    other = RunFolder(tmp_path / "given")
    given = settings(base, epochs=1, learning_rate=facts["learning_rate"])
    assert finetune(given, other, small_data(other))["learning_rate"] == given.learning_rate
    for name, value in weights(other.teacher).items():
        assert torch.equal(value, weights(run.teacher)[name]), name
    for width, rate in ((384, 2e-4), (768, 1e-4)):
        model = BertForSequenceClassification(BertConfig(hidden_size=width, num_hidden_layers=1))
        assert learning_rate(TeacherConfig(), model) == rate


def test_batches_are_padded_to_their_longest_and_hold_every_row_once(base, run, monkeypatch):
    shapes, rows = [], []
    original = TeacherTrainer.training_step

    def step(self, model, inputs, *given):
        shapes.append(tuple(inputs["input_ids"].shape))
        lengths = inputs["attention_mask"].sum(dim=1)
        assert lengths.max() == inputs["input_ids"].shape[1]
        rows.extend(tuple(row.tolist()) for row in inputs["input_ids"])
        return original(self, model, inputs, *given)

    monkeypatch.setattr(TeacherTrainer, "training_step", step)
    finetune(settings(base, epochs=1, max_length=40), run, small_data(run))
    assert len(rows) == 48 and len(set(rows)) == 48
    assert len({length for _, length in shapes}) > 1 and max(length for _, length in shapes) < 40


def test_batches_are_others_each_epoch_and_the_same_for_the_same_seed():
    lengths = np.arange(40) % 7

    def batches(seed: int, epoch: int) -> list[list[int]]:
        buckets = _Buckets(lengths, 8, seed)
        buckets.set_epoch(epoch)
        return list(buckets)

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 0) != batches(1, 1) and batches(1, 0) != batches(2, 0)


def test_accumulated_batches_train_like_whole_ones(base, tmp_path):
    calm = make_calm(base, tmp_path / "calm")
    found = {}
    losses = {}
    for name, size, parts in (("whole", 48, 1), ("parts", 12, 4)):
        run = RunFolder(tmp_path / name)
        prepared = small_data(run)
        config = settings(
            calm,
            epochs=2,
            batch_size=size,
            gradient_accumulation=parts,
            class_weights=(1.0, 3.0),
            label_smoothing=0.1,
            learning_rate=1e-3,
        )
        facts = finetune(config, run, prepared)
        found[name] = weights(run.teacher)
        losses[name] = [entry["train_loss"] for entry in facts["history"]]
    # The first step's loss is that of the untrained model, over all rows at once.
    texts, gold = some_texts(48, 1)
    logits = torch.from_numpy(answer(load_base(settings(calm), LABELS), texts).logits)
    weight = torch.tensor([1.0, 3.0])
    first = cross_entropy(logits, torch.from_numpy(gold), weight=weight, label_smoothing=0.1)
    assert losses["whole"][0] == pytest.approx(first.item(), abs=1e-5)
    assert losses["parts"] == pytest.approx(losses["whole"], abs=1e-5)
    for key, value in found["whole"].items():
        torch.testing.assert_close(found["parts"][key], value, atol=2e-5, rtol=1e-4)


def make_calm(base: Path, folder: Path) -> Path:
    """Return a copy of a base without dropout: nothing is random but the order of the rows."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_r_drop_without_dropout_trains_as_without_r_drop(base, tmp_path):
    calm = make_calm(base, tmp_path / "calm")
    found = {}
    for r_drop in (0.0, 4.0):
        run = RunFolder(tmp_path / f"r-drop-{r_drop}")
        config = settings(calm, epochs=1, r_drop=r_drop, class_weights=(1.0, 3.0))
        finetune(config, run, small_data(run))
        found[r_drop] = weights(run.teacher)
    for name, value in found[0.0].items():
        torch.testing.assert_close(found[4.0][name], value, atol=2e-5, rtol=1e-4)


def test_r_drop_draws_the_passes_together(base, tmp_path, monkeypatch):
    """In training each row goes through twice, in evaluation once; with dropout the second term is
    there, and a large one keeps the two answers close.
    """
    rows, apart = [], {}
    for r_drop in (1e-6, 100.0):
        seen = []
        with monkeypatch.context() as patch:

            def watched(logits, gold, *given, seen=seen):
                rows.append((len(logits), len(gold)))
                one, other = logits.detach().softmax(dim=1).chunk(2)
                seen.append((one - other).abs().mean().item())
                return r_drop_loss(logits, gold, *given)

            patch.setattr("bert_kd.teacher.trainer.r_drop_loss", watched)
            run = RunFolder(tmp_path / f"{r_drop}")
            prepared = small_data(run, train=96)
            finetune(settings(base, epochs=6, r_drop=r_drop, last_layers="all"), run, prepared)
        apart[r_drop] = np.mean(seen[-6:])
    assert set(rows) == {(16, 8)}
    assert 0 < apart[100.0] < apart[1e-6]


def test_each_layer_has_its_rate_and_only_weights_decay(two_layers, run, monkeypatch):
    groups = []
    original = TeacherTrainer.create_optimizer

    def watched(self, *given):
        optimizer = original(self, *given)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            shape = (group["lr"], group["weight_decay"], type(optimizer).__name__)
            groups.extend((names[id(parameter)], shape) for parameter in group["params"])
        return optimizer

    monkeypatch.setattr(TeacherTrainer, "create_optimizer", watched)
    config = settings(two_layers, epochs=1, last_layers=2, layer_decay=0.5, learning_rate=0.004)
    facts = finetune(config, run, small_data(run))
    found = dict(groups)
    assert len(found) == len(groups)  # each parameter once
    assert not any("embeddings" in name for name in found)  # frozen
    for name, (rate, decay, kind) in found.items():
        down = 1 if "layer.1." in name else 2 if "layer.0." in name else 0
        assert rate == pytest.approx(0.004 * 0.5**down), name
        assert decay == (0.0 if "bias" in name or "LayerNorm" in name else 0.01), name
        assert kind == "AdamW"
    trainable = [group for group in facts["trainable"]["groups"] if group["trains"]]
    assert sum(group["parameters"] for group in trainable) == facts["trainable"]["trainable"]


def test_a_slower_layer_moves_less(two_layers, tmp_path):
    before = load_base(settings(two_layers), LABELS).model.state_dict()
    moved = {}
    for decay in (1.0, 0.1):
        run = RunFolder(tmp_path / f"{decay}")
        config = settings(two_layers, epochs=1, last_layers="all", layer_decay=decay)
        finetune(config, run, small_data(run))
        after = weights(run.teacher)
        for part in ("layer.0.", "layer.1.", "pooler"):
            changes = [(after[name] - before[name]).abs().mean() for name in after if part in name]
            moved[part, decay] = float(torch.stack(changes).mean())
    ratios = [moved[part, 0.1] / moved[part, 1.0] for part in ("layer.0.", "layer.1.", "pooler")]
    assert ratios[0] < 0.1 < ratios[2] and ratios[0] < ratios[1] < ratios[2]


def test_bf16_and_head_units(base, run):
    facts = finetune(settings(base, bf16=True, head_units=6), run, small_data(run))
    assert facts["head_units"] == 6
    assert weights(run.teacher)["classifier.0.weight"].dtype == torch.float32
    assert np.isfinite(answer(open_teacher(run.teacher), ["a great film"]).logits).all()


def test_pairs_go_through_the_template(base, run):
    texts, gold = some_texts(24, 1)
    seconds = [text for text in some_texts(24, 5)[0]]
    rows = as_rows(texts, gold, seconds)
    prepared = write_data(run, {"train": rows, "validation": rows})
    facts = finetune(settings(base, epochs=1), run, prepared)
    assert facts["pair"] and facts["cut"]["train"] > 0
    teacher = open_teacher(run.teacher)
    one, other = answer(teacher, ["a film"], ["great"]), answer(teacher, ["great"], ["a film"])
    assert (one.logits != other.logits).any()


def test_rows_without_a_label_are_left_out(base, run, monkeypatch):
    texts, gold = some_texts(32, 1)
    gold[::2] = -1
    rows = as_rows(texts, gold)
    whole = as_rows(*some_texts(16, 2))
    prepared = write_data(run, {"train": rows, "validation": whole})
    facts = finetune(settings(base, epochs=1), run, prepared)
    assert facts["steps"] == 2  # 16 rows in batches of 8
    rows.labels[:] = -1
    prepared = write_data(run, {"train": rows, "validation": whole})
    with pytest.raises(TeacherError, match="no row with a label"):
        finetune(settings(base, epochs=1), run, prepared)


def test_a_killed_training_ends_with_the_same_weights(base, tmp_path):
    killed, whole = RunFolder(tmp_path / "killed"), RunFolder(tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, str(HERE / "killed.py"), "train", str(killed.root), str(base), "10"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not killed.teacher.exists()
    # Step 9 of 18 was the last checkpoint; one more was begun.
    steps = sorted(int(path.name.split("-")[1]) for path in killed.teacher_checkpoints.glob("c*-*"))
    assert steps[-1] == 9
    begun = killed.teacher_checkpoints / "checkpoint-12"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(b"half")

    config = resumable(base)
    resumed = finetune(config, killed, small_data(killed))
    straight = finetune(config, whole, small_data(whole))
    assert resumed["history"] == straight["history"] and resumed["best"] == straight["best"]
    expected = weights(whole.teacher)
    assert all(
        torch.equal(value, expected[name]) for name, value in weights(killed.teacher).items()
    )


def test_a_finished_training_is_not_repeated(base, run, monkeypatch):
    prepared, config = small_data(run), resumable(base)
    with monkeypatch.context() as patch:
        patch.setattr("bert_kd.teacher.finetune.save_teacher", fail)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, run, prepared)
    assert run.teacher_checkpoints.exists() and not run.teacher.exists()
    monkeypatch.setattr("bert_kd.teacher.finetune.make_trainer", fail)
    assert finetune(config, run, prepared)["steps"] == 18


def test_members_of_an_ensemble_have_checkpoints_of_their_own(base, run, monkeypatch):
    prepared, config = small_data(run), resumable(base)
    second = run.teachers(2)[1]
    with monkeypatch.context() as patch:
        patch.setattr("bert_kd.teacher.finetune.save_teacher", fail)
        for folder in (run.teacher, second):
            with pytest.raises(KeyboardInterrupt):
                finetune(config, run, prepared, folder)
    assert {path.name for path in run.root.glob("*-checkpoints")} == {
        "teacher-checkpoints",
        "teacher-2-checkpoints",
    }
    monkeypatch.setattr("bert_kd.teacher.finetune.make_trainer", fail)
    finetune(config, run, prepared, second)
    assert (second / "teacher.json").exists() and not run.teacher.exists()
    assert run.teacher_checkpoints.exists() and not run.checkpoints_of(second).exists()


def test_checkpoints_of_other_settings_are_not_gone_on_from(base, run, monkeypatch):
    prepared = small_data(run)
    with monkeypatch.context() as patch:
        patch.setattr("bert_kd.teacher.finetune.save_teacher", fail)
        with pytest.raises(KeyboardInterrupt):
            finetune(resumable(base), run, prepared)
    facts = finetune(settings(base, epochs=1), run, prepared)
    assert facts["steps"] == 6
    assert len(list(run.root.glob("teacher-checkpoints.*.old"))) == 1


def fail(*_, **__):
    raise KeyboardInterrupt


def finished(base: Path, folder: Path, labels: tuple[str, ...]) -> Path:
    """Write a plain classification model with these label names."""
    teacher = load_base(settings(base), labels)
    teacher.model.save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    return folder


def test_a_finished_teacher_is_used_as_it_is(base, run, tmp_path):
    folder = finished(base, tmp_path / "finished", LABELS)
    facts = finetune(settings(folder, fine_tune=False), run, small_data(run))
    assert facts["column_order"] is None and not facts["fine_tuned"]
    expected = weights(folder)
    shutil.rmtree(folder)  # the run keeps what it needs
    assert all(torch.equal(value, expected[name]) for name, value in weights(run.teacher).items())
    open_teacher(run.teacher)


def test_an_encoder_without_a_trained_head_is_no_finished_teacher(base, run):
    config = settings(base, fine_tune=False, labels=LABELS)
    with pytest.raises(TeacherError, match=r"no trained classification head \(classifier"):
        finetune(config, run, small_data(run))


def test_a_finished_teacher_keeps_its_maximum_length(base, run, tmp_path):
    finetune(settings(base, epochs=1), run, small_data(run))
    again = RunFolder(tmp_path / "again")
    config = settings(run.teacher, fine_tune=False, max_length=12)
    with pytest.raises(TeacherError, match="trained with max_length = 16"):
        finetune(config, again, small_data(again))


def test_a_finished_teacher_of_another_order_answers_in_the_datas(base, run, tmp_path):
    texts = some_texts(8, 7)[0]
    straight = finished(base, tmp_path / "straight", LABELS)
    finetune(settings(straight, fine_tune=False), run, small_data(run))
    expected = answer(open_teacher(run.teacher), texts).logits

    turned = finished(base, tmp_path / "turned", ("GOOD", "BAD"))
    facts = finetune(settings(turned, fine_tune=False), run, small_data(run))
    assert facts["column_order"] == (1, 0)
    teacher = open_teacher(run.teacher)
    assert teacher.labels == LABELS
    np.testing.assert_allclose(answer(teacher, texts).logits, expected[:, ::-1], atol=1e-6)


def test_generic_names_need_the_labels_setting(base, run, tmp_path):
    folder = finished(base, tmp_path / "generic", ("LABEL_0", "LABEL_1"))
    prepared = small_data(run)
    with pytest.raises(TeacherError, match="teacher.labels = "):
        finetune(settings(folder, fine_tune=False), run, prepared)
    with pytest.raises(TeacherError, match="names 3 classes.*has 2 outputs"):
        finetune(settings(folder, fine_tune=False, labels=("a", "b", "c")), run, prepared)
    facts = finetune(settings(folder, fine_tune=False, labels=("good", "bad")), run, prepared)
    assert facts["column_order"] == (1, 0)
    config = json.loads((run.teacher / "config.json").read_text())
    assert config["id2label"] == {"0": "good", "1": "bad"}


def test_a_finished_teacher_with_head_units_keeps_them(base, run, tmp_path):
    first = RunFolder(tmp_path / "first")
    finetune(settings(base, epochs=1, head_units=6), first, small_data(first))
    facts = finetune(settings(first.teacher, fine_tune=False), run, small_data(run))
    assert facts["head_units"] == 6
    texts = some_texts(5, 9)[0]
    one, other = open_teacher(first.teacher), open_teacher(run.teacher)
    assert (answer(one, texts).logits == answer(other, texts).logits).all()
