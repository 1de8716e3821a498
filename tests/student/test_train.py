"""The loop: it learns, it is deterministic, and a killed run ends with the same weights."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_kd.config import LossConfig, StudentConfig, TrainingConfig
from bert_kd.errors import StudentError
from bert_kd.student import train as train_module
from bert_kd.student.losses import DistillationLoss, Losses
from bert_kd.student.model import BiLSTM, Shape
from bert_kd.student.optimizer import StudentOptimizer
from bert_kd.student.train import (
    CHECKPOINT,
    Examples,
    evaluate,
    is_as_good,
    learning_rates,
    predict,
    read_history,
    train,
)

Maker = Callable[..., Examples]


def configuration(loss: LossConfig | None = None, **training) -> StudentConfig:
    settings = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01} | training
    loss = loss or LossConfig()
    return StudentConfig(name="base", loss=loss, training=TrainingConfig(**settings))


def new_model(pair: bool = False, dropout: float = 0.2) -> BiLSTM:
    torch.manual_seed(0)
    return BiLSTM(Shape(60, 12, 8, 1, "max", 8, 3, pair, pair, dropout))


def run(folder: Path, make: Maker, config: StudentConfig, pair: bool = False, **rows) -> BiLSTM:
    model = new_model(pair)
    examples = make(128, pair=pair, **rows)
    validation = make(64, pair=pair, teacher=False, seed=1)
    train(config, model, examples, validation, folder, seed=5, name="base", fingerprint="f")
    return model


def same(a: BiLSTM, b: BiLSTM) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("soft", ["mse", "kl"])
def test_eight_examples_are_memorised(tmp_path: Path, make_examples: Maker, pair: bool, soft: str):
    examples = make_examples(8, pair=pair)
    config = configuration(LossConfig(soft=soft), epochs=120, batch_size=4, patience=0)
    model = new_model(pair, dropout=0.0)
    metrics = train(config, model, examples, examples, tmp_path, seed=1, name="x", fingerprint="f")
    assert metrics["validation_accuracy"] == 1.0
    assert (predict(model, examples).argmax(axis=1) == examples.labels).all()


def test_it_learns_from_the_teacher_alone(tmp_path: Path, make_examples: Maker):
    examples = make_examples(256)
    unlabelled = Examples(examples.tokens, None, np.full(256, -1), examples.logits)
    model = new_model()
    config = configuration(LossConfig(preset="tang2019"), epochs=8)
    validation = make_examples(64, seed=1)
    train(config, model, unlabelled, validation, tmp_path, seed=1, name="x", fingerprint="f")
    assert evaluate(model, validation)["accuracy"] > 0.9


def test_history_and_metrics_are_those_of_the_kept_weights(tmp_path: Path, make_examples: Maker):
    model = run(tmp_path, make_examples, configuration(epochs=4))
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    best = max(row["validation_accuracy"] for row in history)
    good = [row for row in history if is_as_good(row["validation_accuracy"], best, "accuracy", 64)]
    assert metrics["best_epoch"] == good[-1]["epoch"]
    measured = evaluate(model, make_examples(64, teacher=False, seed=1))
    assert measured["accuracy"] == metrics["validation_accuracy"]
    assert measured["nll"] == pytest.approx(metrics["validation_nll"], rel=1e-5)


def test_the_latest_epoch_that_is_as_good_as_the_best_is_kept():
    assert is_as_good(0.89, 0.90, "accuracy", 872)  # a standard error is 0.0102
    assert not is_as_good(0.88, 0.90, "accuracy", 872)
    assert not is_as_good(0.89, 0.90, "accuracy", 10_000)
    assert is_as_good(0.5, 0.5, "macro_f1", 1) and is_as_good(1.0, 1.0, "accuracy", 50)
    assert not is_as_good(0.999, 1.0, "accuracy", 50)
    assert not is_as_good(-0.301, -0.3, "nll", 100)  # likelihood is no share


def test_a_worse_last_epoch_is_not_kept(tmp_path: Path, make_examples: Maker, monkeypatch):
    accuracies = iter([0.70, 0.90, 0.88, 0.60])

    def measured(*_: object) -> dict[str, float]:
        value = next(accuracies)
        return {"accuracy": value, "macro_f1": value, "nll": 1.0}

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "evaluate", measured)
        run(tmp_path, make_examples, configuration(epochs=4))
    assert json.loads((tmp_path / "metrics.json").read_text())["best_epoch"] == 3


def test_a_checkpoint_of_another_format_is_set_aside(tmp_path: Path, make_examples, monkeypatch):
    monkeypatch.setattr(train_module, "FORMAT", 1)
    monkeypatch.setattr(train_module, "write_json", lambda *_: None)
    run(tmp_path, make_examples, configuration(epochs=1))
    assert (tmp_path / CHECKPOINT).exists()
    monkeypatch.undo()
    run(tmp_path, make_examples, configuration(epochs=1))
    assert (tmp_path / CHECKPOINT).with_suffix(".other").exists()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, make_examples: Maker):
    first = run(tmp_path / "a", make_examples, configuration())
    again = run(tmp_path / "b", make_examples, configuration())
    assert same(first, again)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "no")],
)
def test_a_cpu_that_computes_in_bf16_does(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert train_module._precision("auto") == precision
    assert (train_module._precision("fp32"), train_module._precision("bf16")) == ("no", "bf16")


def test_a_precision_that_was_used_before_does_not_matter(tmp_path: Path, make_examples: Maker):
    first = run(tmp_path / "a", make_examples, configuration(epochs=1))
    run(tmp_path / "b", make_examples, configuration(epochs=1, precision="bf16"))
    assert same(first, run(tmp_path / "c", make_examples, configuration(epochs=1)))


def test_patience_stops_early(tmp_path: Path, make_examples: Maker):
    config = configuration(epochs=50, patience=2, learning_rate=1e-9, warmup=0.0)
    run(tmp_path, make_examples, config)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["epochs"] == 3  # nothing is learned: the first was the best
    assert metrics["best_epoch"] == 3  # and the latest as good


def test_a_run_that_had_stopped_early_is_not_gone_on_with(tmp_path: Path, make_examples: Maker):
    """Killed between its last checkpoint and the saving of the student, say."""
    config = configuration(epochs=50, patience=2, learning_rate=1e-9, warmup=0.0)
    first = run(tmp_path, make_examples, config)
    metrics = (tmp_path / "metrics.json").read_text()
    assert same(first, run(tmp_path, make_examples, config))
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["epochs"]
        == (json.loads(metrics)["epochs"])
    )


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_a_diverging_training_is_refused(tmp_path: Path, make_examples: Maker, metric: str):
    config = configuration(learning_rate=1e30, metric=metric)
    with pytest.raises(StudentError, match=r"diverged in epoch \d .*learning_rate"):
        run(tmp_path, make_examples, config)


def test_the_moving_average_is_what_is_judged_and_kept(tmp_path: Path, make_examples: Maker):
    plain = run(tmp_path / "a", make_examples, configuration(patience=0))
    averaged = run(tmp_path / "b", make_examples, configuration(patience=0, ema=0.99))
    assert not same(plain, averaged)
    # The first steps count with (1 + t)/(10 + t): the start is forgotten, not kept at 0.99.
    accuracy = evaluate(averaged, make_examples(64, teacher=False, seed=1))["accuracy"]
    assert (
        accuracy == json.loads((tmp_path / "b" / "metrics.json").read_text())["validation_accuracy"]
    )


def test_the_moving_average_is_the_one_by_hand(tmp_path: Path, make_examples: Maker, monkeypatch):
    decay, follow = 0.5, train_module._follow
    mine = [value.detach().double() for value in new_model().parameters()]
    # 8 batches an epoch, followed once for three of them and for the two that are left.
    moves, judged = iter([(2, 3), (5, 3), (7, 2), (10, 3), (13, 3), (15, 2)]), []

    def follow_by_hand(averaged, model, *given) -> None:
        step, window = next(moves)
        kept = min(decay, (1 + step) / (10 + step)) ** window  # (1 + t)/(10 + t) up to step 8
        for place, value in enumerate(model.parameters()):
            mine[place] = kept * mine[place] + (1 - kept) * value.detach().double()
        follow(averaged, model, *given)

    def judge(model: BiLSTM, examples: Examples) -> dict[str, float]:
        judged.append(model)
        for found, wanted in zip(model.parameters(), mine, strict=True):
            assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-6)
        return evaluate(model, examples)

    monkeypatch.setattr(train_module, "FOLLOW_STEPS", 3)
    monkeypatch.setattr(train_module, "_follow", follow_by_hand)
    monkeypatch.setattr(train_module, "evaluate", judge)
    run(tmp_path, make_examples, configuration(epochs=2, ema=decay, patience=0))
    assert len(judged) == 2 and next(moves, None) is None


def test_a_frozen_embedding_does_not_move(tmp_path: Path, make_examples: Maker):
    config = configuration()
    frozen = config.model_copy(
        update={"embedding": config.embedding.model_copy(update={"freeze": True})}
    )
    model = run(tmp_path, make_examples, frozen)
    assert torch.equal(model.embedding.weight, new_model().embedding.weight)
    recurrent = model.layers[0].rightward.weight_hh_l0
    assert not torch.equal(recurrent, new_model().layers[0].rightward.weight_hh_l0)


def test_the_feature_term_teaches(tmp_path: Path, make_examples: Maker):
    given = make_examples(128)
    features = np.repeat(np.eye(3)[given.labels], 2, axis=1).astype(np.float16)
    examples = Examples(given.tokens, None, np.full(128, -1), given.logits, features)
    loss = LossConfig(hard_weight=0, soft_weight=0, feature_weight=1)
    config = configuration(loss, epochs=6, patience=0)
    validation = make_examples(64, seed=1)
    model = new_model()
    train(config, model, examples, validation, tmp_path, seed=1, name="x", fingerprint="f")
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert history[-1]["feature"] < 0.5 * history[0]["feature"]


def test_each_term_of_the_history_is_a_mean_over_the_rows_it_applies_to(
    tmp_path: Path, make_examples: Maker, monkeypatch
):
    """2 rows of 40 have a label, in batches of 16, 16 and 8."""
    given = make_examples(40)
    labels = np.where(np.isin(np.arange(40), [3, 21]), given.labels, -1)
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16)
    examples = Examples(given.tokens, None, labels, given.logits, features)
    batches: list[tuple[torch.Tensor, Losses]] = []
    forward = DistillationLoss.forward

    def note(self, logits, pooled, labels, *others) -> Losses:
        batches.append((labels, forward(self, logits, pooled, labels, *others)))
        return batches[-1][1]

    monkeypatch.setattr(DistillationLoss, "forward", note)
    loss = LossConfig(hard_weight=0.5, soft_weight=2.0, feature_weight=0.3)
    validation, config = make_examples(64, seed=1), configuration(loss, epochs=2, patience=0)
    train(config, new_model(), examples, validation, tmp_path, seed=1, name="x", fingerprint="f")
    history = read_history(tmp_path)
    for row, epoch in zip(history, (batches[:3], batches[3:]), strict=True):
        assert sorted(len(found) for found, _ in epoch) == [8, 16, 16]
        labelled = [(found >= 0).sum().item() for found, _ in epoch]
        assert sum(labelled) == 2 and 0 in labelled  # a batch has none, and counts for nothing
        hard = sum(n * terms.hard.item() for n, (_, terms) in zip(labelled, epoch, strict=True))
        assert row["hard"] == pytest.approx(hard / 2)
        for key, name in (("loss", "total"), ("soft", "soft"), ("feature", "feature")):
            whole = sum(len(found) * getattr(terms, name).item() for found, terms in epoch)
            assert row[key] == pytest.approx(whole / 40)


def test_terms_without_rows_are_0_in_the_history(tmp_path: Path, make_examples: Maker):
    given = make_examples(40)
    examples = Examples(given.tokens, None, np.full(40, -1), given.logits)
    validation, config = make_examples(64, seed=1), configuration(epochs=1)
    train(config, new_model(), examples, validation, tmp_path, seed=1, name="x", fingerprint="f")
    (row,) = read_history(tmp_path)
    assert row["hard"] == 0.0 == row["feature"] and row["soft"] > 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_and_then_falls_as_its_schedule_says(schedule: str):
    settings = TrainingConfig(learning_rate=2.0, warmup=0.2, schedule=schedule)
    rate = learning_rates(settings, 50)
    assert [rate(step) for step in range(10)] == pytest.approx(np.arange(1, 11) / 5)
    quarter, half, end = {
        "cosine": (1 + math.sqrt(0.5), 1.0, 0.0),
        "linear": (1.5, 1.0, 0.0),
        "constant": (2.0, 2.0, 2.0),
    }[schedule]
    found = [rate(step) for step in (10, 20, 30, 50, 60)]
    assert found == pytest.approx([2.0, quarter, half, end, end])
    without = learning_rates(settings.model_copy(update={"warmup": 0.0}), 50)
    assert without(0) == 2.0


def test_the_history_has_the_learning_rate_of_each_epochs_last_batch(
    tmp_path: Path, make_examples: Maker
):
    config = configuration()
    run(tmp_path, make_examples, config)
    rate = learning_rates(config.training, 24)
    found = [row["learning_rate"] for row in read_history(tmp_path)]
    assert found == [rate(7), rate(15), rate(23)] and len(set(found)) == 3


class Stop(Exception):
    """Stands for the kill of a process in the tests that need no real one."""


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("at_step", [3, 8, 13, 23])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, make_examples: Maker, monkeypatch: pytest.MonkeyPatch, at_step: int, ema: float
):
    config = configuration(checkpoint_seconds=0.0, ema=ema)  # 8 batches an epoch, 24 in all
    whole = run(tmp_path / "whole", make_examples, config)

    forward, calls = BiLSTM.forward, 0

    def counted(self, *arguments):
        nonlocal calls
        calls += self.training
        if calls > at_step:
            raise Stop
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BiLSTM, "forward", counted)
        with pytest.raises(Stop):
            run(tmp_path / "part", make_examples, config)
    resumed_steps = 0

    def counting(self, *arguments):
        nonlocal resumed_steps
        resumed_steps += self.training
        return forward(self, *arguments)

    monkeypatch.setattr(BiLSTM, "forward", counting)
    resumed = run(tmp_path / "part", make_examples, config)
    assert same(whole, resumed)
    assert resumed_steps == 24 - at_step  # nothing is computed twice
    assert lasting(tmp_path / "part") == lasting(tmp_path / "whole")


def lasting(folder: Path) -> list[dict[str, float]]:
    """A history without its times."""
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in read_history(folder)
    ]


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_was_killed_in_an_evaluation_has_the_same_weights_and_history(
    tmp_path: Path, make_examples: Maker, monkeypatch: pytest.MonkeyPatch, epoch: int, ema: float
):
    config = configuration(checkpoint_seconds=0.0, ema=ema)
    whole = run(tmp_path / "whole", make_examples, config)
    calls = iter(range(1, epoch + 1))

    def stopping(model: BiLSTM, examples: Examples) -> dict[str, float]:
        if next(calls) == epoch:  # after the checkpoint of the epoch's last batch
            raise Stop
        return evaluate(model, examples)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "evaluate", stopping)
        with pytest.raises(Stop):
            run(tmp_path / "part", make_examples, config)
    assert same(whole, run(tmp_path / "part", make_examples, config))
    assert lasting(tmp_path / "part") == lasting(tmp_path / "whole")


def test_a_checkpoint_of_other_settings_is_set_aside(tmp_path: Path, make_examples: Maker):
    run(tmp_path, make_examples, configuration(epochs=1))
    assert (tmp_path / CHECKPOINT).exists()
    model = new_model()
    examples, validation = make_examples(128), make_examples(64, teacher=False, seed=1)
    config = configuration(epochs=1)
    train(config, model, examples, validation, tmp_path, seed=5, name="x", fingerprint="other")
    assert (tmp_path / CHECKPOINT).with_suffix(".other").exists()


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, make_examples: Maker):
    whole = run(tmp_path / "a", make_examples, configuration())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / CHECKPOINT).write_bytes(b"half a file")
    assert same(whole, run(tmp_path / "b", make_examples, configuration()))
    assert (tmp_path / "b" / CHECKPOINT).with_suffix(".damaged").exists()


@pytest.mark.slow
def test_kill_9_in_the_middle_and_resume(tmp_path: Path):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path

            import numpy as np
            import torch
            from bert_kd.config import StudentConfig, TrainingConfig
            from bert_kd.data.batches import Tokens
            from bert_kd.student.model import BiLSTM, Shape
            from bert_kd.student.train import Examples, train

            torch.set_num_threads(1)
            generator = np.random.default_rng(0)
            ids = generator.integers(2, 50, 400 * 20).astype(np.int32)
            tokens = Tokens(ids, np.arange(401) * 20)
            labels = generator.integers(0, 3, 400)
            examples = Examples(tokens, None, labels, np.eye(3, dtype=np.float32)[labels])
            torch.manual_seed(0)
            model = BiLSTM(Shape(60, 12, 32, 1, "max", 8, 3))
            settings = TrainingConfig(epochs=8, batch_size=4, patience=0, checkpoint_seconds=0.05)
            config = StudentConfig(name="base", training=settings)
            folder = Path(sys.argv[1])
            train(config, model, examples, examples, folder, seed=1, name="x", fingerprint="f")
            torch.save(model.state_dict(), folder / "final.pt")
            """
        )
    )

    def start(folder: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(script), str(folder)], env=environment, stderr=subprocess.DEVNULL
        )

    assert start(tmp_path / "whole").wait(timeout=120) == 0
    for _ in range(3):  # killed three times, each time further on
        process = start(tmp_path / "killed")
        checkpoint, seen = tmp_path / "killed" / CHECKPOINT, 0
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while seen < 3 and process.poll() is None:
            time.sleep(0.01)
            now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else before
            seen, before = seen + (now != before), now
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait(timeout=120) == 0
    whole, killed = (torch.load(tmp_path / name / "final.pt") for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert lasting(tmp_path / "whole") == lasting(tmp_path / "killed")


def test_given_vectors_learn_more_slowly_than_random_ones():
    settings = TrainingConfig()
    assert settings.embedding_rate_from(given=False) == 1.0
    assert 0 < settings.embedding_rate_from(given=True) < 1
    fixed = TrainingConfig(embedding_rate=0.5)
    assert fixed.embedding_rate_from(given=True) == fixed.embedding_rate_from(given=False) == 0.5


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_the_embedding_has_a_learning_rate_of_its_own(tmp_path: Path, make_examples: Maker, share):
    model, before = new_model(dropout=0.0), new_model().embedding.weight.detach().clone()
    examples = make_examples(8)
    config = configuration(
        epochs=1, batch_size=8, warmup=0.0, weight_decay=0.0, embedding_rate=share, precision="fp32"
    )
    train(config, model, examples, examples, tmp_path, seed=1, name="x", fingerprint="f")
    moved = (model.embedding.weight.detach() - before).abs().max().item()
    # The first step of Adam is as long as its learning rate.
    assert moved == pytest.approx(config.training.learning_rate * share, rel=0.01)


class DenseOptimizer(StudentOptimizer):
    """As the package's, but for the embedding: a dense gradient, torch's own AdamW."""

    def __init__(self, dense, table, settings, rate_of_embedding, scaler):
        super().__init__([*dense, table], None, settings, rate_of_embedding, scaler)


@pytest.mark.parametrize(
    ("pair", "word_dropout", "settings"),
    [
        (False, 0.0, {}),
        (True, 0.0, {"clip": 0.3}),
        (False, 0.0, {"ema": 0.9}),
        # Of so few tokens that most steps show none of them as unknown.
        (False, 0.05, {}),
    ],
)
def test_rows_that_wait_end_where_adamw_has_them(
    tmp_path: Path, make_examples: Maker, monkeypatch, pair, word_dropout, settings
):
    config = configuration(
        **{"epochs": 3, "batch_size": 2, "learning_rate": 3e-3, "weight_decay": 0.3}
        | {"embedding_rate": 1.0, "precision": "fp32"}
        | settings
    )
    steps, tables = 32, []
    examples, validation = make_examples(2 * steps, pair=pair), make_examples(64, pair=pair, seed=1)

    def note(model: BiLSTM, _: Examples) -> dict[str, float]:
        tables.append(model.embedding.weight.detach().clone())
        return evaluate(model, validation)

    monkeypatch.setattr(train_module, "evaluate", note)
    for name in ("deferred", "dense"):
        if name == "dense":
            monkeypatch.setattr(train_module, "StudentOptimizer", DenseOptimizer)
        torch.manual_seed(0)
        model = BiLSTM(Shape(60, 12, 8, 1, "max", 8, 3, pair, pair, 0.0, word_dropout=word_dropout))
        model.embedding.sparse = name == "deferred"
        start = model.embedding.weight.detach().clone()
        folder = tmp_path / name
        train(config, model, examples, validation, folder, seed=5, name="x", fingerprint="f")
    deferred, dense = tables[:3], tables[3:]
    for epoch, (found, wanted) in enumerate(zip(deferred, dense, strict=True)):
        moved = (wanted - start).abs().max()
        assert (found - wanted).abs().max() < 0.01 * moved, epoch


def test_of_scaled_gradients_both_optimizers_step_once_or_not_at_all():
    def moved(scaled: bool, overflow: bool = False) -> list[torch.Tensor]:
        torch.manual_seed(0)
        dense, table = torch.nn.Linear(4, 2), torch.nn.Embedding(9, 4, sparse=True)
        before = [dense.weight.detach().clone(), table.weight.detach().clone()]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16) if scaled else None
        settings = TrainingConfig(clip=1.0)
        optimizer = StudentOptimizer([*dense.parameters()], table.weight, settings, 1.0, scaler)
        for _ in range(3):
            ids = torch.tensor([2, 3])
            optimizer.begin(0.1)
            optimizer.catch_up(ids)
            loss = (dense(table(ids)) * 1e-6).square().sum()
            (scaler.scale(loss) if scaler else loss).backward()
            if overflow:
                dense.weight.grad[0, 0] = torch.inf
            optimizer.step()
        if overflow:
            assert scaler.get_scale() == 2.0**13
        return [dense.weight.detach() - before[0], table.weight.detach() - before[1]]

    plain, scaled = moved(False), moved(True)
    for left, right in zip(plain, scaled, strict=True):
        assert left.abs().max() > 0
        assert torch.allclose(left, right, rtol=1e-3, atol=1e-7)
    assert all(value.abs().max() == 0 for value in moved(True, overflow=True))
