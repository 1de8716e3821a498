from __future__ import annotations

from pathlib import Path

import pytest
import quality
from places import CONFIGS
from quality_suites import SUITES, suite_named
from quality_variants import plan

from bert_kd.config_file import load_config
from bert_kd.errors import UserError

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
    assert places["0.1 CE + 0.9 MSE"] != places["MSE"]  # other soft weight
    assert places["+ embedding start"].line == places["KL, T = 2"].line
    views = lines[places["+ views"].line].config
    assert views.augment.views > 0 and views.run != load_config(path).run
    again, others = plan(load_config(path), path, [], suite.ablation[::-1])
    for name, place in places.items():
        assert again[others[name].line].config.run == lines[place.line].config.run
        assert others[name].student == place.student


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
