"""report.json, the page and the terminal's table, for reports of every shape."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builder import LABELS, make_report
from rich.console import Console

from bert_kd.errors import UserError
from bert_kd.evaluate.findings import grouped
from bert_kd.evaluate.page import headline, render_page, summary
from bert_kd.evaluate.report import read_report, results_table, rows, write_report

SHAPES = {
    "ordinary": {},
    "no teacher": {"teacher": False},
    "black box": {"black_box": True},
    "no twin": {"twin": False},
    "no speed": {"speed": False},
    "ten seeds": {"seeds": tuple(range(10))},
    "two classes": {"labels": ("no", "yes")},
    "many classes": {"labels": tuple(f"a rather long name {n}" for n in range(77)), "rows": 200},
    "several students": {"groups": ("base", "small", "tiny"), "seeds": (1, 2)},
    "pairs": {"texts_b": ("another one",)},
    "one split": {"splits": ("test",)},
    "long history": {"epochs": 3000},
    "chinese": {"labels": ("负面", "正面"), "texts": ("酒店很好，下次还来",)},
}
VOID = {"meta", "link", "br", "hr", "img", "input", "col", "path", "use", "line", "rect"}


class Page(HTMLParser):
    """Collects text and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    return page


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_report_of_any_shape_is_written_read_and_shown(shape, tmp_path: Path):
    report = make_report(**shape)
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
    page = parse((tmp_path / "index.html").read_text(encoding="utf-8"))
    text = " ".join("".join(page.text).split())
    assert headline(report) in text
    for sentence in summary(report):
        assert sentence in text
    assert all(target.startswith("#") for target in page.loaded)
    assert "nan" not in text.lower().split() and "None" not in text


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_table_is_whole_at_80_columns(shape):
    report = make_report(**shape)
    console = Console(width=80, record=True, file=sys.stderr)
    console.print(results_table(report))
    shown = console.export_text()
    assert "…" not in shown and max(len(line) for line in shown.splitlines()) <= 80
    for group in grouped(report):
        line = next(line for line in shown.splitlines() if line.strip().startswith(group.label))
        assert f"{100 * group.accuracy.value:.1f}" in line
        if group.speed is not None:
            assert f"{group.speed.texts_per_second:,.0f}"[:4] in line


def test_times_faster_means_than_the_teacher():
    assert "×" in "".join(_cells(make_report()))
    for shape in ({"teacher": False}, {"black_box": True}):
        report = make_report(**shape)
        assert "×" not in "".join(_cells(report))
        assert "times the speed" not in headline(report)


def _cells(report) -> list[str]:
    console = Console(width=100, record=True, file=sys.stderr)
    console.print(results_table(report))
    return console.export_text().split()


def test_rows_for_programs():
    report = make_report(seeds=(1, 2))
    found = rows(report)
    assert [row["role"] for row in found] == ["teacher", "student", "student", "twin", "twin"]
    for row, model in zip(found, report.models, strict=True):
        assert row["split"] == "test" and row["name"] == model.name
        for key in ("accuracy", "macro_f1", "agreement"):
            assert row[key] == getattr(model.metrics["test"], key)
        assert row["parameters"] == model.parameters and row["bytes"] == model.bytes


def test_the_json_is_plain_json(tmp_path: Path):
    write_report(make_report(), tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["rows"] and found["machine"]["threads"] == 1 and found["versions"]


def test_texts_and_labels_are_escaped():
    evil = "<script>alert('x')</script> & \"quotes\""
    report = make_report(texts=(evil,), labels=("<b>bold</b>", *LABELS[1:]))
    html = render_page(report)
    assert "<script>alert" not in html and "<b>bold" not in html
    assert evil in "".join(parse(html).text)


def test_the_page_loads_nothing():
    html = render_page(make_report())
    outside = re.findall(r"https?://[^\s\"'<)]+", html)
    assert {url for url in outside if "w3.org" not in url} == set()
    assert "@import" not in html and "url(" not in html.replace("url(#", "")


def test_the_headline_says_what_is_kept_and_how_fast():
    report = make_report()
    teacher, student = report.models[0], report.models[1]
    kept = student.metrics["test"].accuracy / teacher.metrics["test"].accuracy
    assert f"{100 * kept:.1f}% of its teacher's accuracy" in headline(report)
    assert "38.4 times the speed" in headline(report)


def test_without_the_extra_the_json_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert write_report(make_report(), tmp_path) is None
    assert (tmp_path / "report.json").exists() and not (tmp_path / "index.html").exists()
    assert "pip install 'bert_kd[report]'" in capsys.readouterr().err


def test_what_is_no_report_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="missing"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match="run the stage evaluate again"):
        read_report(tmp_path)


def test_a_report_that_contradicts_itself_is_a_bug(tmp_path: Path):
    from dataclasses import replace

    report = make_report()
    with pytest.raises(ValueError, match="different names"):
        write_report(replace(report, models=report.models * 2), tmp_path)
    with pytest.raises(ValueError, match="not measured on train"):
        write_report(replace(report, split="train"), tmp_path)


def test_an_interval_of_a_single_seed_is_said_to_know_of_no_others():
    def said(**shape) -> int:
        text = " ".join("".join(parse(render_page(make_report(**shape))).text).split())
        return text.count("of a single seed says nothing of other seeds")

    assert said() == 2  # of the results and of the differences
    assert said(seeds=(1, 2)) == 1  # the teacher is one
    assert said(seeds=(1, 2), teacher=False) == 0
