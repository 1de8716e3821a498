"""The training and caching benchmarks: the loops are the same student, and the commands run."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import caching
import caching_memory
import numpy as np
import pytest
import speed_docs
import speed_runs
import torch
import training
import training_loops
from training_loops import Loop, PackedBiLSTM, Parts, training_device

from bert_kd.errors import UserError
from bert_kd.hardware import precision_of
from bert_kd.store import write_json
from bert_kd.student.model import BiLSTM, Shape

SHAPE = Shape(30, 6, 5, 1, "max", 4, 3)


def copied(model: BiLSTM) -> PackedBiLSTM:
    """Return the packed student with the weights of `model`."""
    packed = PackedBiLSTM(model.shape)
    own = model.state_dict()
    for number, layer in enumerate(packed.layers):
        for side, suffix in (("rightward", ""), ("leftward", "_reverse")):
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                value = own.pop(f"layers.{number}.{side}.{name}")
                getattr(layer, name + suffix).data.copy_(value)
    lacking = packed.load_state_dict(own, strict=False).missing_keys
    assert all(name.startswith("layers.") for name in lacking)
    return packed


@pytest.mark.parametrize("layers", [1, 2])
def test_the_packed_student_is_the_same_student(layers: int):
    torch.manual_seed(1)
    model = BiLSTM(Shape(30, 6, 5, layers, "max", 4, 3)).eval()
    ids = torch.randint(2, 30, (3, 7))
    lengths = torch.tensor([7, 2, 4])
    with torch.inference_mode():
        expected = model(ids, lengths).logits
        found = copied(model).eval()(ids, lengths).logits
    assert torch.allclose(expected, found, atol=1e-6)


def lesson(tiny_bert: Path, rows: int = 24) -> training.Lesson:
    split = speed_runs.read_split(speed_runs.HELPDESK, "train")
    config = training.student_config(8)
    return training.prepare(config, split, range(rows), tiny_bert, 1)


def test_loops_of_all_parts_learn_alike(tiny_bert):
    """All loops that shuffle alike take the same steps, those of rare words too."""
    prepared = lesson(tiny_bert)
    torch.manual_seed(0)
    config = prepared.config.model_copy(
        update={
            "model": prepared.config.model.model_copy(update={"dropout": 0.0}),
            # Several batches an epoch: not all of them read the same words.
            "training": prepared.config.training.model_copy(update={"batch_size": 4}),
        }
    )
    shape = Shape(**{**vars(prepared.shape), "dropout": 0.0})
    steps = {}
    for name, parts in {"dense": Parts(), "deferred": Parts(deferred=True, fused=True)}.items():
        loop = Loop(config, shape, prepared.examples, parts, 1)
        before = deepcopy(loop.model.state_dict())
        for number in range(3):
            loop.epoch(number)
        steps[name] = {key: value - before[key] for key, value in loop.model.state_dict().items()}
    for key, step in steps["dense"].items():
        assert (step - steps["deferred"][key]).norm() < 0.01 * step.norm(), key


def test_all_loops_take_the_device_of_the_packages(tiny_bert, monkeypatch):
    prepared = lesson(tiny_bert)
    monkeypatch.setattr(training_loops, "training_device", lambda: torch.device("meta"))
    loop = Loop(prepared.config, prepared.shape, prepared.examples, Parts(packed=True), 1)
    assert {value.device.type for value in loop.model.parameters()} == {"meta"}


def test_clipping_counts_sparse_rows_once(tiny_bert):
    prepared = lesson(tiny_bert)
    loop = Loop(prepared.config, prepared.shape, prepared.examples, Parts(deferred=True), 1)
    ids = torch.tensor([[5, 5, 5]])
    loss = 1000 * loop.model(ids, torch.tensor([3])).logits.sum()
    loss.backward()
    loop._clip()
    norms = [
        (value.grad._values() if value.grad.is_sparse else value.grad).norm()
        for value in loop.model.parameters()
        if value.grad is not None
    ]
    assert loop.model.embedding.weight.grad._values().shape[0] == 1
    assert torch.stack(norms).norm() == pytest.approx(loop.config.training.clip, rel=1e-4)


def test_whole_trainings_are_timed_and_take_turns_in_going_first(tiny_bert, monkeypatch):
    """What a trainer does besides its epochs is part of its seconds."""
    prepared = lesson(tiny_bert)
    now, trained = [0.0], []
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    def trainer(name: str, seconds: tuple[float, ...]) -> training.Trainer:
        def train(given, validation, epochs, seed):
            trained.append((seed, name))
            assert given is prepared and epochs == 3
            now[0] += seconds[seed - 1]
            return BiLSTM(given.shape)

        return train

    trainers = {
        training.ORDINARY: trainer(training.ORDINARY, (4.0, 6.0, 80.0)),
        training.PACKAGE: trainer(training.PACKAGE, (1.0, 3.0, 2.0)),
    }
    monkeypatch.setattr(training, "TRAINERS", trainers)
    held_out = speed_runs.read_split(speed_runs.HELPDESK, "validation")
    rows = training.measure_accuracy(prepared, speed_runs.HELPDESK, held_out, 3, 3)
    first, second = trainers
    assert trained == [(1, first), (1, second), (2, second), (2, first), (3, first), (3, second)]
    assert speed_runs.value_of(rows, first, "h8.seconds") == 6.0  # a median
    assert speed_runs.value_of(rows, second, "h8.seconds") == 2.0
    assert speed_runs.value_of(rows, second, "h8.seconds", "ratio") == 0.25


@pytest.mark.parametrize("name", [training.ORDINARY, training.PACKAGE])
def test_both_trainers_keep_a_model_that_learnt(tiny_bert, name):
    prepared = lesson(tiny_bert)
    torch.manual_seed(1)
    start = BiLSTM(prepared.shape).state_dict()
    model = training.TRAINERS[name](prepared, prepared.examples, 2, 1)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, start[key])]
    assert len(moved) > 1


def test_a_part_of_train_is_held_out():
    def sizes(rows: int, *given: str) -> tuple[int, int]:
        held, chosen = training.chosen_rows(training.parse(given), rows)
        assert not {*held.tolist()} & {*chosen.tolist()}
        return len(held), len(chosen)

    assert sizes(10_000) == (0, training.ROWS) and sizes(10_000, "--rows", "7") == (0, 7)
    assert sizes(10_000, "--accuracy") == (1000, 9000)
    assert sizes(800, "--accuracy") == (200, 600)  # the bundled set
    assert sizes(800, "--accuracy", "--held-out", "700", "--rows", "64") == (700, 64)
    with pytest.raises(UserError, match="give a --held-out below that"):
        sizes(800, "--accuracy", "--held-out", "800")


def test_accuracy_and_memory_make_no_rounds(capsys):
    for module, mode in ((training, ["--accuracy"]), (caching, ["--memory", "10"])):
        assert module.parse(mode).rounds is None and module.parse([]).rounds == speed_runs.ROUNDS
        for given in (["--rounds", "5"], ["--minutes", "3"]):
            with pytest.raises(SystemExit):
                module.parse([*mode, *given])
            assert f"leave out {given[0]}" in capsys.readouterr().err


def test_the_machine_is_looked_at_before_the_work(tiny_bert, monkeypatch):
    """Else the work would count as the machine's load; and the rounds are those that were made."""
    monkeypatch.setattr(caching, "LENGTH", 48)
    order = []
    for module in (training, caching):
        look = module.facts
        monkeypatch.setattr(
            module,
            "facts",
            lambda *given, look=look, **named: order.append("facts") or look(*given, **named),
        )

    def work(*given):
        order.append("work")
        return [], 2

    for module, name in (
        (training, "measure_speed"),
        (caching, "measure_logits"),
        (caching, "measure_freezing"),
    ):
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(training, "measure_accuracy", lambda *given: work()[0])
    monkeypatch.setattr(caching_memory, "measure", lambda *given: work()[0])
    few = ["--set", "helpdesk", "--model", str(tiny_bert)]
    small = [*few, "--hidden", "8", "--rows", "16"]
    made = [
        training.measure(training.parse(small)),
        caching.measure(caching.parse([*few, "--texts", "4"])),
        caching.measure(caching.parse([*few, "--texts", "4", "--freezing"])),
        training.measure(training.parse([*small, "--accuracy"])),
        caching.measure(caching.parse(["--memory", "10"])),
    ]
    assert order == ["facts", "work"] * 5
    assert [found["config"].get("rounds") for found in made] == [2, 2, 2, None, None]
    assert all("rounds" not in found["config"] for found in made[3:])


def run(module, options: list[str], results: Path, name: str) -> dict:
    found = module.measure(module.parse(options))
    write_json(results / f"{name}.json", found)
    assert found["config"]["benchmark"] == name and found["machine"]["cores"] > 0
    assert all(set(row) >= {"system", "metric", "value", "ratio"} for row in found["rows"])
    return found


def test_training_runs_to_the_document(tiny_bert, tmp_path):
    few = ["--set", "helpdesk", "--model", str(tiny_bert), "--hidden", "8"]
    found = run(training, [*few, "--rows", "32", "--rounds", "1"], tmp_path, "training")
    systems = [row["system"] for row in found["rows"]]
    assert systems[: len(training.LADDER)] == list(training.LADDER)
    assert f"{training.PACKAGE}, fp32" in systems
    assert found["config"]["device"] == str(training_device())
    assert all(row["value"] > 0 for row in found["rows"])
    assert found["config"]["rounds"] == 1 and "precision" not in found["config"]
    more = [*few, "--rows", "32", "--accuracy", "--seeds", "2", "--epochs", "1"]
    more += ["--held-out", "16"]
    found = run(training, more, tmp_path, "training-accuracy")
    accuracy = speed_runs.value_of(found["rows"], training.PACKAGE, "h8.accuracy")
    assert accuracy is not None and 0 <= accuracy <= 1
    judged = speed_runs.value_of(found["rows"], training.PACKAGE, "h8.judged_rows")
    asked = training.student_config(8).training.precision
    assert found["config"]["precision"] == {
        training.ORDINARY: "fp32",
        training.PACKAGE: precision_of(asked),
    }
    splits = [speed_runs.read_split(speed_runs.HELPDESK, name) for name in ("validation", "test")]
    assert judged == 16 + sum(len(split) for split in splits)
    speed_docs.write_docs(tmp_path, tmp_path / "docs" / "speed.md")
    page = (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "| + deferred embedding |" in page and "Difference in points" in page
    assert (tmp_path / "docs" / "speed" / "training.svg").read_text().startswith("<?xml")


def test_caching_runs_to_the_document(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setitem(caching.MATMUL_SIZE, "cpu", 32)
    monkeypatch.setattr(caching, "LENGTH", 48)
    few = ["--set", "helpdesk", "--model", str(tiny_bert), "--texts", "24", "--rounds", "1"]
    rows = run(caching, few, tmp_path, "caching")["rows"]
    largest = speed_runs.value_of(rows, "sorted, fp32", "largest_difference")
    rounded = speed_runs.value_of(rows, "sorted, bf16", "largest_difference")
    assert largest is not None and rounded is not None and largest < 1e-5 < rounded
    assert speed_runs.value_of(rows, "sorted, fp32", "same_class") == 1.0
    rows = run(caching, [*few, "--freezing"], tmp_path, "caching-freezing")["rows"]
    assert speed_runs.value_of(rows, "head alone, states cached", "bytes_a_text") > 0
    speed_docs.write_docs(tmp_path, tmp_path / "docs" / "speed.md")
    page = (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "| sorted, bf16 |" in page and "| head alone, states cached |" in page


def test_operations_are_counted_by_hand(tiny_bert, monkeypatch):
    monkeypatch.setattr(caching, "LENGTH", 48)
    teacher = caching.make_teacher(str(tiny_bert), None, ["a", "b"])
    hidden = 32  # one layer: four square products and two of four times the width
    weights = 4 * hidden**2 + 2 * 4 * hidden**2
    expected = 2 * weights * 7 + 4 * hidden * (9 + 16)
    assert caching.operations(teacher, np.array([3, 4])) == expected


def test_synthetic_rows_are_distinct_and_as_many_as_asked_for():
    batches = list(caching_memory.synthetic_rows(caching_memory.ROWS_AT_ONCE + 5))
    assert [len(rows) for rows in batches] == [caching_memory.ROWS_AT_ONCE, 5]
    assert len({text for rows in batches for text in rows.texts}) == len(batches[0]) + 5


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    rows = run(caching, ["--memory", "300"], tmp_path, "caching-memory")["rows"]
    assert speed_runs.value_of(rows, "300 rows", "peak_bytes") > 1e6
    speed_docs.write_docs(tmp_path, tmp_path / "docs" / "speed.md")
    assert "| 300 rows |" in (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
