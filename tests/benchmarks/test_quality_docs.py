from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import quality_docs
from matplotlib.figure import Figure
from quality_figures import draw
from quality_suites import SUITES

from bert_kd.errors import UserError
from bert_kd.store import write_json

MACHINE = {"cpu": "CPU", "cores": 2, "memory_gib": 7.5, "python": "3.11.7", "threads": 1}


def system(name: str, role: str, **others) -> dict:
    return {
        "name": name,
        "role": role,
        "about": "",
        "beside": None,
        "part": None,
        "x": None,
        "engine": "native int8",
    } | others


def table(kind: str = "main") -> dict:
    """A table with made-up figures."""
    figures = {
        "test.accuracy": 0.9,
        "test.accuracy_low": 0.85,
        "test.accuracy_high": 0.95,
        "test.macro_f1": 0.895,
        "seeds": 2,
        "parameters": 1_500_000,
        "parameters_without_embedding": 500_000,
        "bytes": 6_000_000,
        "latency_p50_us": 310.0,
        "texts_per_second": 4321.0,
        "times_faster_single": 31.0,
        "times_faster_bulk": 20.0,
    }
    minus = {"test.minus_teacher": -0.02, "test.minus_teacher_low": -0.05}
    minus["test.minus_teacher_high"] = 0.01
    twin = {f"test.minus_beside{end}": 0.01 for end in ("", "_low", "_high")}
    gap = {"test.gap_closed": 0.4, "test.gap_closed_low": None, "test.gap_closed_high": None}
    if kind == "main":
        systems = [
            system("teacher", "teacher", about="3 × offline"),
            system("base", "student", beside="base twin"),
            system("base twin", "twin"),
            system("fastText", "control"),
        ]
        values = [figures, figures | minus | twin | gap, figures | minus, figures | minus]
    else:
        part = "losses" if kind == "ablation" else "epochs"
        systems = [
            system("teacher", "teacher"),
            system("MSE", "student", part=part, x=1.0),
            system("KL, T = 2", "student", part=part, x=2.0, beside="MSE"),
        ]
        values = [figures, figures | minus, figures | minus | twin]
    return {
        "machine": MACHINE,
        "config": {
            "suite": "trec",
            "table": kind,
            "command": "python benchmarks/quality.py --suite trec",
            "seeds": [1, 2],
            "sets": {"test": 500},
            "systems": systems,
            "notes": ["A note."],
            "versions": {"torch": "2.13.0"},
            "commit": "0123456789abcdef",
            "made": "2026-01-02T03:04:05+00:00",
        },
        "rows": [
            {
                "system": one["name"],
                "metric": key,
                "value": value,
                "ratio": 1,
                "ratio_to": "teacher",
            }
            for one, found in zip(systems, values, strict=True)
            for key, value in found.items()
        ],
    }


def test_the_main_table_shows_every_figure_beside_its_interval():
    lines = quality_docs.tables(table())
    assert lines[0] == "**test (500 rows)**"
    head, student = lines[2], lines[5]
    cells = dict(zip(head.split(" | "), student.split(" | "), strict=True))
    assert cells["| system"] == "| **base**"
    assert cells["accuracy %"] == "90.0 [85.0, 95.0]"
    assert cells["− teacher"] == "−2.0 [−5.0, +1.0]"
    assert cells["− twin"] == "+1.0 [+1.0, +1.0]"
    assert cells["gap closed %"] == "40"
    assert cells["parameters (without embedding)"] == "1.50 M (500 k)"
    assert cells["texts/s"] == "4,321 (20.0×)"
    assert cells["one text"] == "310 µs (31.0×)" and cells["timed in |"] == "native int8 |"
    assert lines[4].startswith("| teacher (3 × offline) |")
    assert len({line.count(" | ") for line in lines[2:8]}) == 1


def test_what_limits_a_student_is_told_under_its_curve(tmp_path: Path):
    limited = next(name for name, suite in SUITES.items() if suite.limits)
    for kind in ("curve", "ablation"):
        found = table(kind)
        found["config"]["suite"] = limited
        write_json(tmp_path / quality_docs.file_name(limited, kind), found)
    page = tmp_path / "docs" / "results.md"
    quality_docs.write_docs(tmp_path, page)
    told = page.read_text(encoding="utf-8")
    assert told.count(SUITES[limited].limits) == 1
    assert told.index(f"{limited}: curve") < told.index(SUITES[limited].limits)


def test_teachers_share_one_table_of_all_sets():
    found = table("ablation")
    config = found["config"]
    config |= {"table": "teachers", "sets": {"test": 500, "validation": 100}}
    names = {"teacher": "as configured", "MSE": "last 1", "KL, T = 2": "mean"}
    for one in config["systems"]:
        one |= {"role": "teacher", "name": names[one["name"]]}
        one["beside"] = "as configured" if one["part"] else None
    for row in found["rows"]:
        row["system"] = names[row["system"]]
    more = {"validation.accuracy": 0.8, "trainable_parameters": 7_000_000}
    found["rows"] += [
        {"system": "mean", "metric": key, "value": value, "ratio": 1, "ratio_to": "as configured"}
        for key, value in more.items()
    ]
    lines = quality_docs.tables(found)
    assert lines[0] == "**Teachers: test (500 rows), validation (100 rows)**"
    assert [line.split(" | ")[0] for line in lines[4:7]] == [
        "| as configured",
        "| last 1",
        "| mean",
    ]
    cells = dict(zip(lines[2].split(" | "), lines[6].split(" | "), strict=True))
    assert cells["test %"] == "90.0 [85.0, 95.0]" and cells["validation %"] == "80.0"
    assert cells["test: difference"] == "+1.0 [+1.0, +1.0]"
    assert cells["trained parameters |"] == "7.00 M |"
    assert "dashed: as configured" in draw(found)


def test_columns_that_nobody_fills_are_left_out():
    found = table()
    for one in found["config"]["systems"]:
        del one["engine"]  # of a table of before
    assert "timed in" not in "\n".join(quality_docs.tables(found))
    found["rows"] = [row for row in found["rows"] if "gap_closed" not in row["metric"]]
    assert "gap closed" not in "\n".join(quality_docs.tables(found))


def test_the_page_has_tables_figures_and_what_made_them(tmp_path: Path):
    results, page = tmp_path / "results", tmp_path / "docs" / "results.md"
    for kind in ("curve", "ablation", "main"):
        write_json(results / quality_docs.file_name("trec", kind), table(kind))
    quality_docs.write_docs(results, page)
    text = page.read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# Results", "## trec", "### trec: ablation", "### trec: curve"]
    assert "`python benchmarks/quality.py --suite trec`; seeds 1–2; CPU, 2 cores" in text
    assert "commit 0123456789, 2026-01-02." in text and "A note." in text
    for kind in ("main", "ablation", "curve"):
        figure = page.parent / "results" / f"trec-{kind}.svg"
        assert f"(results/{figure.name})" in text
        assert ElementTree.parse(figure).getroot().tag.endswith("svg")
    before = {path: path.read_bytes() for path in page.parent.rglob("*.*") if path.is_file()}
    quality_docs.write_docs(results, page)
    assert {path: path.read_bytes() for path in before} == before


def test_every_dot_of_a_curve_lies_in_its_panel(monkeypatch: pytest.MonkeyPatch):
    """Also where panels have other values."""
    found = table("curve")
    found["config"]["systems"][-1]["part"] = "size"
    for row in found["rows"]:
        if row["system"] == "KL, T = 2" and row["metric"].startswith("test.accuracy"):
            row["value"] -= 0.4
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(found)
    panels = drawn[0].axes
    assert len(panels) == 2 and len({axes.get_ylim() for axes in panels}) == 1
    low, high = panels[0].get_ylim()
    assert all(low < y < high for axes in panels for line in axes.lines for y in line.get_ydata())


def test_no_tables_are_refused_with_words(tmp_path: Path):
    with pytest.raises(UserError, match="holds no quality-"):
        quality_docs.write_docs(tmp_path, tmp_path / "results.md")
