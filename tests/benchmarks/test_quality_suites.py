from __future__ import annotations

from pathlib import Path

import pytest
import quality
import quality_teachers
from places import CONFIGS
from quality_suites import CONFIGURED, SUITES, suite_named
from quality_variants import link, plan

from bert_kd.config import Config, TeacherConfig
from bert_kd.config_file import load_config
from bert_kd.errors import UserError
from bert_kd.student.guards import check_loss
from bert_kd.teacher.trainer import RATE

THERE = [name for name, suite in SUITES.items() if (CONFIGS / suite.config).exists()]


@pytest.mark.parametrize("name", THERE)
@pytest.mark.parametrize("table", ["ablation", "curve"])
def test_every_variant_is_a_configuration(name: str, table: str):
    suite = SUITES[name]
    variants = getattr(suite, table)
    if not variants:
        return
    path = CONFIGS / suite.config
    main = load_config(path)
    lines, places = plan(main, path, [], variants)
    assert set(places) == {variant.name for variant in variants}
    assert len({line.config.run for line in lines}) == len(lines)
    for place in places.values():
        names = [student.name for student in lines[place.line].config.students]
        assert place.student in names
    for variant in variants:
        assert variant.beside is None or variant.beside in places, variant.name


def test_equal_settings_share_a_student_and_equal_lines_a_run():
    suite = SUITES["trec"]
    path = CONFIGS / suite.config
    lines, places = plan(load_config(path), path, [], suite.ablation)
    assert places["0.1 CE + 0.9 KL"] != places["KL, T = 2"]  # other soft weight
    assert places["+ embedding start"].line == places["KL, T = 2"].line
    views = lines[places["+ views"].line].config
    assert views.augment.views == "auto" and views.run != load_config(path).run
    # With all parts a student is the suite's own, and not trained again.
    whole = places["+ ensemble of 3"]
    assert lines[whole.line].config.run == load_config(path).run and whole.student == "base"
    again, others = plan(load_config(path), path, [], suite.ablation[::-1])
    for name, place in places.items():
        assert again[others[name].line].config.run == lines[place.line].config.run
        assert others[name].student == place.student


@pytest.mark.parametrize(("name", "classes"), [("sst2", 2), ("sst2-sentences", 2), ("trec", 6)])
def test_every_loss_of_an_ablation_says_something_of_so_many_classes(name: str, classes: int):
    suite = SUITES[name]
    path = CONFIGS / suite.config
    lines, places = plan(load_config(path), path, [], suite.ablation)
    for line in lines:
        for student in line.config.students:
            check_loss(student, classes, line.config.logits, [], line.config.teacher.ensemble)
    found = {name: lines[place.line].config for name, place in places.items()}
    assert found["KL, calibrated teacher"].logits.calibrate
    assert places["KL"] == places["KL, T = 2"]  # trained once
    assert ("correlation (DIST)" in places) == (classes > 2)


def test_views_stand_beside_the_steps_where_there_is_a_pool():
    suite = SUITES["sst2"]
    path = CONFIGS / suite.config
    lines, places = plan(load_config(path), path, [], suite.ablation)
    found = {name: lines[place.line].config for name, place in places.items()}
    assert found["+ pool"].data.transfer and found["+ pool"].augment.views == 0
    views = found["views, no pool"]
    assert views.augment.views == 2 and not views.data.transfer and views.teacher.ensemble == 1
    assert places["views, no pool"].student == places["+ embedding start"].student
    beside = {variant.name: variant.beside for variant in suite.ablation}
    assert beside["+ pool"] == beside["views, no pool"] == "+ embedding start"


def settled(teacher: TeacherConfig) -> TeacherConfig:
    """Return the settings as the offline BERT has them where they are left open."""
    own = {"pooling": "mean", "learning_rate": RATE}
    return teacher.model_copy(
        update={key: of for key, of in own.items() if getattr(teacher, key) == "auto"}
    )


@pytest.mark.parametrize("name", [name for name in THERE if SUITES[name].teachers])
def test_every_variant_of_a_teacher_has_a_run_of_its_own_a_seed(name: str):
    suite = SUITES[name]
    candidates = quality_teachers.plan(CONFIGS / suite.config, [], suite.teachers, 2)
    assert [one.name for one in candidates] == [CONFIGURED, *(v.name for v in suite.teachers)]
    assert all(variant.beside == CONFIGURED for variant in suite.teachers)
    runs: dict[Path, Config] = {}
    for candidate in candidates:
        assert [run.teacher.seed for run in candidate.runs] == [1, 2]
        for run in candidate.runs:
            assert not run.augment.views and not run.data.transfer
            # One folder is one setting: only variants that change nothing share it.
            assert runs.setdefault(run.run, run) == run
    configured = settled(candidates[0].runs[0].teacher)
    same = [one.name for one in candidates[1:] if settled(one.runs[0].teacher) == configured]
    pooled = [name for name in same if name in ("mean pooling", "first token")]
    assert len(pooled) == 1, "the other one is what there is to compare"
    assert len(same) <= 2, f"of {same} some say what {suite.config} says: change these variants"
    # Halves and doubles lie around what the configuration says.
    for key in ("learning_rate", "epochs"):
        marked = f"teacher.{key}="
        told = [
            float(line.removeprefix(marked))
            for variant in suite.teachers
            for line in variant.overrides
            if line.startswith(marked)
        ]
        if told:
            assert min(told) < getattr(configured, key) < max(told), key


def test_a_teacher_that_is_not_trained_is_no_study():
    with pytest.raises(UserError, match="leave out teacher.fine_tune = false"):
        quality_teachers.plan(CONFIGS / "demo.toml", ["teacher.fine_tune=false"], (), 1)


def test_absent_data_is_refused_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(quality.DATA, raising=False)
    with pytest.raises(UserError, match=f"--data FOLDER, or in the environment .*{quality.DATA}"):
        quality.requests(quality.parse(["--suite", "trec"]))
    with pytest.raises(UserError, match="has no folder 'trec'"):
        quality.requests(quality.parse(["--suite", "trec", "--data", str(tmp_path)]))
    with pytest.raises(UserError, match="did you mean 'trec'"):
        suite_named("trek")


def test_the_command_line_sets_seeds_and_overrides(tmp_path: Path):
    (tmp_path / "trec").mkdir()
    asked = ["--suite", "trec", "--seeds", "2", "--data", str(tmp_path), "teacher.epochs=1"]
    (request,) = quality.requests(quality.parse(asked))
    config = load_config(request.config, request.all_overrides)
    assert all(student.seeds == (1, 2) for student in config.students)
    assert config.teacher.epochs == 1
    assert Path(config.data.source) == (tmp_path / "trec").resolve()
    assert (request.table, request.seeds) == ("main", 2)


def test_the_command_that_is_told_names_no_folder_of_this_machine(tmp_path: Path):
    (tmp_path / "trec").mkdir()
    pool = f"data.transfer=['{tmp_path}/pool.tsv', '{tmp_path}/trec/more.tsv', '/else/it.tsv']"
    others = ["a.b=x/y", "c.d=~/me/z.txt"]
    asked = ["--suite", "trec", "--data", str(tmp_path), pool, *others]
    (request,) = quality.requests(quality.parse(asked))
    told = quality._command(request)
    assert str(tmp_path) not in told
    # As seen from the suite's folder, which is where the configuration looks for them.
    assert "['../pool.tsv', 'more.tsv', 'it.tsv']" in told.replace("'\"'\"'", "'")
    assert "a.b=x/y" in told and "c.d=z.txt" in told


def test_suites_without_a_table_are_not_asked_for_their_data(tmp_path: Path):
    with_ablation = [name for name, suite in SUITES.items() if suite.ablation]
    for name in with_ablation:
        (tmp_path / str(SUITES[name].folder)).mkdir()
    asked = ["--suite", "all", "--ablation", "--data", str(tmp_path)]
    found = quality.requests(quality.parse(asked))
    assert [request.suite.name for request in found] == with_ablation


def test_a_link_that_leads_nowhere_is_replaced(tmp_path: Path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    place = tmp_path / "run" / "teacher"
    link(tmp_path / "old", place)
    link(tmp_path / "new", place)
    assert place.resolve() == tmp_path / "old"
    (tmp_path / "old").rmdir()
    link(tmp_path / "new", place)
    assert place.resolve() == tmp_path / "new"
