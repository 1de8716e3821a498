"""The whole line on the tiny configuration: 01 to 06 once, then what a second run must do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from places import CONFIGS, HELPDESK, REPOSITORY
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import bert_kd
from bert_kd import provenance, stages
from bert_kd.config import Config
from bert_kd.config_file import load_config
from bert_kd.data.rows import read_rows
from bert_kd.errors import CacheError, StageError
from bert_kd.lock import alone_in
from bert_kd.logits.cache import LogitCache
from bert_kd.provenance import members
from bert_kd.standing import Wishes
from bert_kd.store import STAMP, RunFolder, Stamp, read_json
from bert_kd.student.train import CHECKPOINT


@pytest.fixture
def own_run(tiny_run: Config, tmp_path: Path) -> Config:
    """A copy of the finished tiny run, free to be changed."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.run, folder)
    return tiny_run.model_copy(update={"run": folder})


def changed(config: Config, **sections) -> Config:
    """Return the configuration with keys of its sections changed: `teacher={"epochs": 2}`."""
    values = config.model_dump(mode="json")
    for section, keys in sections.items():
        target = values["students"][0] if section == "student" else values[section]
        for key, value in keys.items():
            inner, _, last = key.rpartition(".")
            (target[inner] if inner else target)[last] = value
    return Config.model_validate(values)


def files_of(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


def test_every_file_of_a_run_is_there(tiny_run: Config):
    run = RunFolder(tiny_run.run)
    for name in ("train", "validation", "test", "transfer"):
        assert run.split(name).exists()
    student = tiny_run.students[0].name
    for path in (
        run.labels,
        run.prepared,
        run.teacher / "model.safetensors",
        run.teacher_facts,
        run.report / "report.json",
        run.report / "index.html",
        run.bundle(student) / "bundle.json",
        *(run.student(member.name) / "model.safetensors" for member in members(tiny_run)),
        *(run.student(member.name) / "history.jsonl" for member in members(tiny_run)),
    ):
        assert path.exists(), path
    assert [member.name for member in members(tiny_run)] == ["base-seed17", "base-seed17-twin"]
    assert not run.teacher_checkpoints.exists()
    assert not list(run.students.glob("*/checkpoint*"))
    leftovers = [path for path in tiny_run.run.rglob("*") if path.name.endswith(".tmp")]
    assert not leftovers


def test_every_stage_says_what_made_it(tiny_run: Config):
    run = RunFolder(tiny_run.run)
    for folder, stage in (
        (run.data, "prepare-data"),
        (run.teacher, "train-teacher"),
        (run.logits, "cache-logits"),
        (run.student("base-seed17"), "train-students"),
        (run.report, "evaluate"),
        (run.bundle("base"), "export"),
    ):
        stamp = Stamp.read(folder)
        assert stamp is not None and stamp.stage == stage
        assert stamp.versions["torch"] and stamp.config["run"] == str(tiny_run.run)
    # Given back as --config, the file makes the same student.
    for name in ("base-seed17", "base-seed17-twin"):
        again = load_config(run.student(name) / "stage.json")
        assert again.students == tiny_run.students and again.teacher == tiny_run.teacher


def test_cached_logits_are_the_teachers_answers(tiny_run: Config):
    from bert_kd.teacher.answer import answer
    from bert_kd.teacher.model import open_teacher

    run = RunFolder(tiny_run.run)
    rows = read_rows(run.split("test"))
    cache = LogitCache.open(run.cache(Stamp.read(run.logits).inputs["teacher"]))
    shuffled = np.random.default_rng(0).permutation(len(rows))[:40]
    found = cache.lookup(rows.keys[shuffled]).logits
    expected = answer(open_teacher(run.teacher), [rows.texts[row] for row in shuffled], None)
    np.testing.assert_allclose(found, expected.logits, atol=1e-5)


def test_a_finished_run_is_left_as_it_is(own_run: Config, capsys):
    before = files_of(own_run.run)
    stages.run_stages(own_run)
    assert files_of(own_run.run) == before
    said = capsys.readouterr().err
    assert said.count("is current") == 6 and "0 computed" in said


def test_a_finished_run_can_be_read_only(own_run: Config, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path):
        raise AssertionError(f"{path} is written")

    monkeypatch.setattr("bert_kd.store.writing", refuse)
    stages.run_stages(own_run)


def test_a_stage_that_another_process_is_in_is_refused(own_run: Config):
    run = RunFolder(own_run.run)
    for stage, folder in (("prepare-data", run.data), ("train-teacher", run.root)):
        with (
            alone_in(folder, "testing"),
            pytest.raises(StageError, match=f"another process is .* in {folder}: wait for it"),
        ):
            stages.run_stages(own_run, stage, stage, Wishes(force=frozenset({stage})))


def test_the_report_and_the_bundle_agree(tiny_run: Config):
    report = read_json(tiny_run.run / "report" / "report.json")
    row = next(row for row in report["rows"] if row["role"] == "student")
    for key in ("accuracy", "macro_f1", "agreement", "parameters", "bytes"):
        assert row[key] is not None, key
    test = read_rows(RunFolder(tiny_run.run).split("test"))
    classify = bert_kd.load(tiny_run.run / "bundles" / "base")
    answers = [answer["label"] for answer in classify(test.texts)]
    gold = [classify.labels[label] for label in test.labels]
    right = np.mean([a == b for a, b in zip(answers, gold, strict=True)])
    assert right == pytest.approx(row["accuracy"], abs=1 / len(gold))
    engines = {row["role"]: row["engine"] for row in report["rows"]}
    assert engines["teacher"] == "torch fp32"
    assert engines["student"] == f"{classify.engine.name} {classify.engine.precision}"


def test_other_teacher_settings_are_refused_and_say_how_to_go_on(own_run: Config):
    other = changed(own_run, teacher={"epochs": 2.0})
    for stage in (stages.train_teacher, stages.cache_logits):
        with pytest.raises(StageError) as caught:
            stage(other)
        message = str(caught.value)
        assert "teacher.epochs: wanted 2.0, made with 1.0" in message
        assert "--force train-teacher" in message and "--keep train-teacher" in message
    filled = stages.cache_logits(other, Wishes(keep={"train-teacher"}))
    assert filled.computed == 0


def test_later_stages_ask_whether_the_teacher_stands(own_run: Config):
    other = changed(own_run, teacher={"seed": 99})
    for stage in (stages.train_students, stages.evaluate, stages.export):
        with pytest.raises(StageError, match=r"teacher\.seed: wanted 99, made with 17"):
            stage(other)
    kept = Wishes(keep={"train-teacher"}, force={"evaluate"})
    assert stages.train_students(other, kept)
    teacher = stages.evaluate(other, kept).models[0]
    assert (teacher.role, teacher.seed) == ("teacher", 17)  # that which it was made with


def test_rows_of_a_teachers_training_do_not_come_to_judge_it(own_run: Config, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(HELPDESK / "train.tsv", source)
    shutil.copy(HELPDESK / "labels.json", source)
    cut = changed(own_run, data={"source": str(source), "validation_fraction": 0.4})
    stages.prepare_data(cut)  # all its rows are cached, as train's
    with pytest.raises(StageError, match=r"inputs\.train"):
        stages.train_students(changed(cut, student={"name": "fresh"}))


def test_another_model_under_the_same_name_makes_the_teacher_stale(
    own_run: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_kd.teacher.base.fingerprint_base", lambda name: "another")
    with pytest.raises(StageError, match=r"inputs\.base: wanted 'another'"):
        stages.train_teacher(own_run)
    # One of a time before that was noted stands, until it is made again.
    stamp = Stamp.read(RunFolder(own_run.run).teacher)
    older = replace(stamp, inputs={k: v for k, v in stamp.inputs.items() if k != "base"})
    older.write(RunFolder(own_run.run).teacher)
    assert stages.train_teacher(own_run)
    stages.train_teacher(own_run, Wishes(force={"train-teacher"}))
    assert Stamp.read(RunFolder(own_run.run).teacher).inputs["base"] == "another"
    # What it was made from need not be there any more.
    monkeypatch.setattr("bert_kd.teacher.base.fingerprint_base", lambda name: None)
    assert stages.train_teacher(own_run)


def test_data_that_was_prepared_in_part_is_not_current(
    own_run: Config, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_):
        raise InterruptedError

    other = changed(own_run, augment={"views": 3})
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_write_views", fail)
        with pytest.raises(InterruptedError):
            stages.prepare_data(other)
    for config in (own_run, other):
        with pytest.raises(StageError, match="run prepare-data again"):
            stages.train_students(config)
    assert stages.prepare_data(other).rows["views"] > 0


def test_the_report_is_of_bundles_as_they_are_exported(own_run: Config):
    run, prepared = provenance.with_data(own_run)
    sources = provenance.teacher_sources(own_run, run, Wishes())

    def differences(**changes) -> list[str]:
        stamps = [
            provenance.report_stamp(changed(own_run, **sections), run, prepared, sources)
            for sections in ({}, changes)
        ]
        return [line.partition(":")[0] for line in stamps[0].differences(stamps[1])]

    assert differences(export={"precision": "fp32"}) == ["export.precision"]
    assert differences(logits={"combine": "probabilities"}) == []  # there is one teacher
    untimed = {"evaluate": {"speed_rounds": 0}}
    own_run = changed(own_run, **untimed)
    assert differences(export={"precision": "fp32"}) == []


def test_a_bundle_tells_no_figures_of_other_rows(own_run: Config, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(HELPDESK, source)
    lines = (source / "test.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (source / "test.tsv").write_text("".join(lines[:60]), encoding="utf-8")
    pool = [str(source / "transfer.tsv")]
    other = changed(own_run, data={"source": str(source), "transfer": pool})
    stages.prepare_data(other)
    (bundle,) = stages.export(other, Wishes(force={"export"}))
    assert set(bundle.metrics) == {"validation"}


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"student": {"training.checkpoint_seconds": 1.0}}, ()),
        ({"student": {"training.epochs": 3}}, ("student",)),
        ({"student": {"training.twin_epochs": 3}}, ("twin",)),
        ({"student": {"training.learning_rate": 0.1}}, ("student", "twin")),
        ({"student": {"rows.maximum": 50}}, ("student",)),
        ({"student": {"loss.label_smoothing": 0.1}}, ("student", "twin")),
        ({"student": {"loss.temperature": 3.0}}, ("student",)),
        ({"logits": {"calibrate": True}}, ("student",)),
        ({"logits": {"combine": "probabilities"}}, ()),  # there is one teacher
    ],
)
def test_students_are_stale_where_they_would_come_out_otherwise(
    tiny_run: Config, changes: dict, stale: tuple[str, ...]
):
    run, prepared = provenance.with_data(tiny_run)
    sources = provenance.teacher_sources(tiny_run, run, Wishes())

    def stamps(config: Config) -> list[Stamp]:
        found = members(config)
        return [
            provenance.student_stamp(config, member, run, prepared, sources) for member in found
        ]

    pairs = zip(stamps(tiny_run), stamps(changed(tiny_run, **changes)), strict=True)
    found = {"student": next(pairs), "twin": next(pairs)}
    assert tuple(role for role, (one, other) in found.items() if one.differences(other)) == stale


def test_answers_teach_nothing_to_a_student_of_gold_labels(tiny_run: Config):
    gold = changed(tiny_run, student={"loss.hard_weight": 1.0, "loss.soft_weight": 0.0})
    run, prepared = provenance.with_data(gold)
    sources = provenance.teacher_sources(gold, run, Wishes())
    (member,) = members(gold)
    stamp, other = (
        provenance.student_stamp(config, member, run, prepared, sources)
        for config in (gold, changed(gold, logits={"calibrate": True, "combine": "probabilities"}))
    )
    assert stamp.differences(other) == []


def test_another_student_costs_no_teacher_pass(own_run: Config, monkeypatch: pytest.MonkeyPatch):
    import bert_kd.teacher.answer

    def never(*_, **__):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(bert_kd.teacher.answer.Answering, "__call__", never)
    wider = changed(own_run, student={"name": "wider", "model.hidden_size": 24, "twin": False})
    before = files_of(own_run.run / "logits")
    stages.run_stages(wider, last="train-students")
    assert files_of(own_run.run / "logits") == before
    assert (own_run.run / "students" / "wider-seed17" / "model.safetensors").exists()


def test_a_student_of_other_settings_is_refused(own_run: Config):
    other = changed(own_run, student={"training.epochs": 3})
    with pytest.raises(StageError, match=r"training\.epochs: wanted 3, made with 2"):
        stages.train_students(other)
    with pytest.raises(StageError, match="--force train-students"):
        stages.export(other)
    metrics = stages.train_students(other, Wishes(force={"train-students"}))
    assert metrics["base-seed17"]["epochs"] == 3


def test_force_makes_what_changed_again_and_goes_on_where_it_was_killed(
    own_run: Config, monkeypatch: pytest.MonkeyPatch
):
    from bert_kd.student import lesson

    other = changed(own_run, student={"loss.soft_weight": 0.5})
    twin = own_run.run / "students" / "base-seed17-twin"
    before = files_of(twin)
    train = lesson.train

    def killed(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(lesson, "train", killed)
    with pytest.raises(InterruptedError):
        stages.train_students(other, Wishes(force={"train-students"}))
    monkeypatch.setattr(lesson, "train", train)
    stages.train_students(other)  # without being forced again
    assert files_of(twin) == before  # the soft loss is nothing to a twin


def test_a_student_is_trained_by_one_process(own_run: Config, monkeypatch: pytest.MonkeyPatch):
    folder = own_run.run / "students" / "base-seed17"
    stamp = (folder / STAMP).read_bytes()
    (folder / STAMP).unlink()
    with alone_in(folder, "testing"):
        with pytest.raises(StageError, match="another process is training base-seed17 in"):
            stages.train_students(own_run)

    @contextmanager
    def after_another(held: Path, _: str) -> Iterator[None]:
        (held / STAMP).write_bytes(stamp)
        yield

    monkeypatch.setattr(stages, "alone_in", after_another)
    before = files_of(folder)
    assert stages.train_students(own_run)["base-seed17"]
    assert files_of(folder) == before


def test_a_checkpoint_that_a_kill_left_behind_its_student_goes(own_run: Config):
    folder = own_run.run / "students" / "base-seed17"
    (folder / CHECKPOINT).touch()
    before = files_of(folder)
    stages.train_students(own_run)
    assert files_of(folder).keys() == before.keys() - {CHECKPOINT}


def test_a_teacher_that_another_process_has_made_is_not_made_again(
    own_run: Config, monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder(own_run.run).teacher
    stamp = (folder / STAMP).read_bytes()
    (folder / STAMP).unlink()

    @contextmanager
    def after_another(*_: object) -> Iterator[None]:
        (folder / STAMP).write_bytes(stamp)
        yield

    monkeypatch.setattr(stages, "alone_in", after_another)
    before = files_of(folder)
    stages.train_teacher(own_run)
    assert files_of(folder) == before


def test_a_new_teacher_makes_old_answers_stale(own_run: Config):
    other = changed(own_run, teacher={"epochs": 2.0})
    stages.train_teacher(other, Wishes(force={"train-teacher"}))
    for stage in (stages.train_students, stages.evaluate, stages.export):
        with pytest.raises(StageError, match="answers of another teacher.*run cache-logits again"):
            stage(other)
    assert stages.cache_logits(other).computed > 2000
    with pytest.raises(StageError, match=r"inputs\.teachers"):
        stages.train_students(other)


def test_the_report_follows_its_students_and_the_bundle_the_report(own_run: Config):
    before = files_of(own_run.run / "report")
    assert stages.evaluate(own_run).models and files_of(own_run.run / "report") == before
    other = changed(own_run, student={"training.epochs": 1, "twin": False})
    stages.train_students(other, Wishes(force={"train-students"}))
    bundle = stages.export(other)[0]
    assert bundle.metrics == {} and bundle.name == "base"  # the report is of other weights
    report = stages.evaluate(other)
    bundle = stages.export(other)[0]
    student = next(model for model in report.models if model.role == "student")
    for split in ("validation", "test"):
        assert bundle.metrics[split]["accuracy"] == student.metrics[split].accuracy


def test_imported_caches_are_told_apart_by_content(own_run: Config, tmp_path: Path):
    from bert_kd.logits.exchange import export_answers, import_answers

    run = RunFolder(own_run.run)
    own = run.cache(Stamp.read(run.logits).inputs["teacher"])
    labels = tuple(LogitCache.open(own).manifest.labels)
    prepared = provenance.with_data(own_run)[1]
    stamps = []
    for name, values in (("one", "logits"), ("two", "probabilities")):
        file, folder = tmp_path / f"{name}.csv", tmp_path / name / "answers"
        export_answers(own, run.split("train"), file, labels=labels, values=values)
        import_answers(folder, file, labels=labels, kind=values)
        config = changed(own_run, logits={"teachers": [{"folder": str(folder)}]})
        sources = provenance.teacher_sources(config, run, Wishes())
        member = members(config)[0]
        stamps.append(provenance.student_stamp(config, member, run, prepared, sources))
    assert [line[:15] for line in stamps[0].differences(stamps[1])] == ["inputs.teachers"]


def test_labels_in_another_order_are_noticed(own_run: Config):
    names = list(read_json(own_run.run / "data" / "labels.json").values())
    other = changed(own_run, data={"label_names": names[::-1]})
    stages.prepare_data(other)
    with pytest.raises(StageError, match="was trained for the labels"):
        stages.evaluate(other, Wishes(keep={"train-students", "train-teacher", "cache-logits"}))


def test_new_rows_cost_only_their_own_answers(own_run: Config, tmp_path: Path):
    pool = tmp_path / "pool.tsv"
    texts = (HELPDESK / "transfer.tsv").read_text(encoding="utf-8").splitlines()
    known = 100
    fresh = [f"an entirely new message, number {number}" for number in range(7)]
    pool.write_text("\n".join([*texts[: known + 1], *fresh]) + "\n", encoding="utf-8")
    grown = changed(own_run, data={"transfer": [str(pool)]})
    with pytest.raises(StageError, match="run prepare-data again"):
        stages.cache_logits(grown)
    stages.prepare_data(grown)
    filled = stages.cache_logits(grown)
    assert filled.computed == 7 and filled.reused == filled.rows - 7


def test_views_leave_the_teacher_and_cost_only_their_own_answers(own_run: Config):
    run = RunFolder(own_run.run)
    viewed = changed(own_run, augment={"views": 1}, student={"name": "viewed"})
    with pytest.raises(StageError, match="run prepare-data again"):
        stages.cache_logits(viewed)
    teacher = files_of(run.teacher)
    views = stages.prepare_data(viewed).rows["views"]
    stages.train_teacher(viewed)
    assert files_of(run.teacher) == teacher
    assert views > 500 and stages.cache_logits(viewed).computed == views
    stages.train_students(viewed)
    vocabulary = Tokenizer.from_file(str(run.student("viewed-seed17") / "tokenizer.json"))
    assert vocabulary.token_to_id("[MASK]") is not None
    without = changed(own_run, student={"name": "viewed"})
    assert "views" not in stages.prepare_data(without).rows
    with pytest.raises(StageError, match="was made otherwise"):
        stages.train_students(without)


def test_a_damaged_shard_costs_only_its_rows(own_run: Config):
    run = RunFolder(own_run.run)
    folder = run.cache(Stamp.read(run.logits).inputs["teacher"])
    shards = sorted(folder.glob("part-*.parquet"))
    assert len(shards) > 2
    content = bytearray(shards[1].read_bytes())
    content[len(content) // 2] ^= 0xFF
    shards[1].write_bytes(content)
    filled = stages.cache_logits(own_run)
    assert filled.computed == own_run.logits.rows_per_shard
    assert list(folder.glob("*.damaged"))


def test_the_gate_stops_a_teacher_that_knows_nothing(own_run: Config):
    strict = changed(own_run, logits={"minimum_gain": 0.5}, student={"name": "gated"})
    with pytest.raises(CacheError, match="always saying"):
        stages.train_students(strict)


def test_a_black_box_teacher_needs_no_model(own_run: Config, tmp_path: Path):
    """Logits exported from one cache, imported as a stranger's, teach a run without a teacher."""
    from bert_kd.logits.exchange import export_answers, import_answers

    run = RunFolder(own_run.run)
    own = run.cache(Stamp.read(run.logits).inputs["teacher"])
    labels = tuple(LogitCache.open(own).manifest.labels)
    imported = tmp_path / "stranger"
    for split in ("train", "validation", "test", "transfer"):
        file = tmp_path / f"{split}.csv"
        export_answers(own, run.split(split), file, labels=labels, values="probabilities")
        import_answers(imported, file, labels=labels, kind="probabilities")
    values = own_run.model_dump(mode="json")
    values["run"] = str(tmp_path / "other")
    values["logits"]["teachers"] = [{"folder": str(imported)}]
    student = values["students"][0]
    student |= {"twin": False, "vocabulary": {"kind": "words"}}
    student["embedding"]["start"] = "random"
    config = Config.model_validate(values)
    results = stages.run_stages(config)
    assert "train-teacher" not in results and not (config.run / "teacher").exists()
    roles = [model.role for model in results["evaluate"].models]
    assert roles == ["teacher", "student"]
    assert results["evaluate"].models[0].bytes is None


def test_stage_04_never_loads_the_teacher(own_run: Config):
    shutil.rmtree(own_run.run / "students")
    path = own_run.run / "config.json"
    path.write_text(own_run.model_dump_json())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bert_kd import stages\n"
        "from bert_kd.config_file import load_config\n"
        f"stages.train_students(load_config(Path({str(path)!r})))\n"
        "loaded = [name for name in sys.modules if name.startswith('transformers.model')]\n"
        "assert not loaded, loaded\n"
        "assert 'bert_kd.teacher.model' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_kill_9_in_each_long_stage_and_resume(tmp_path: Path, tiny_overrides: list[str]):
    """The stages are killed once each; the run ends as an uninterrupted one, bit by bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(folder: Path) -> list[str]:
        start = [sys.executable, "-m", "bert_kd", "run", "--config", str(CONFIGS / "tiny.toml")]
        settings = ["students.base.training.checkpoint_seconds=0", "logits.rows_per_shard=64"]
        return [*start, "--until", "train-students", *tiny_overrides, *settings, f"run={folder}"]

    def run(folder: Path) -> str:
        done = subprocess.run(
            command(folder), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr

    run(whole)
    for sign in ("teacher-checkpoints/*/*", "logits/*/part-*", "students/*/checkpoint.safetensors"):
        process = subprocess.Popen(command(killed), env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(killed.glob(sign))) > 0:
                break
            time.sleep(0.01)
        assert process.poll() is None, f"it ended before {sign} appeared"
        process.send_signal(signal.SIGKILL)
        process.wait()
    said = run(killed)
    assert "0 computed" in said  # the cache was whole when the student was killed

    for part in ("teacher", "students/base-seed17", "students/base-seed17-twin"):
        weights = [load_file(folder / part / "model.safetensors") for folder in (whole, killed)]
        for name in weights[0]:
            np.testing.assert_array_equal(weights[1][name], weights[0][name], err_msg=name)
    caches = [next(folder.glob("logits/*/")) for folder in (whole, killed)]
    assert caches[0].name == caches[1].name
    counts = [len(list(cache.glob("part-*.parquet"))) for cache in caches]
    assert counts[0] == counts[1]  # no row was computed twice


@pytest.mark.slow
def test_07_answers_a_request(tiny_run: Config):
    bundle = tiny_run.run / "bundles" / "base"
    process = subprocess.Popen(
        [sys.executable, "scripts/07_serve.py", "--bundle", str(bundle), "--port", "0"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(
            word.strip(" ,.()") for line in process.stderr for word in line.split() if "://" in word
        )
        request = urllib.request.Request(
            f"{address.rstrip('/')}/predict",
            json.dumps({"inputs": "where is my parcel", "top_k": None}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            answers = json.loads(response.read())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        process.stderr.close()
    expected = bert_kd.load(bundle)("where is my parcel", top_k=None)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    assert answers[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)
