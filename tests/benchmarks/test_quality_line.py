"""Every table of the accuracy benchmark on the tiny configuration, from raw text to the page."""

from __future__ import annotations

from pathlib import Path

import controls
import pytest
import quality
import quality_docs
from places import CONFIGS
from quality_suites import BARE, Suite, Variant, loss

from bert_kd.config import Config
from bert_kd.store import read_json, write_json

ABLATION = (
    Variant("gold labels alone", (*BARE, *loss("mse", 1, 0)), "parts"),
    Variant("+ distillation", (*BARE, *loss("mse", 0.1, 1)), "parts", "gold labels alone"),
    Variant("MSE", (*BARE, *loss("mse", 0.1, 1)), "losses"),
    Variant("KL, T = 2", (*BARE, *loss("kl", 0.1, 1, 2)), "losses", "MSE"),
)
CURVE = (
    Variant("10%", (), "data", x=0.1, share_of_train=0.1),
    Variant("1 epoch", ("students.base.training.epochs=1",), "epochs", x=1),
)
SUITE = Suite("tiny", "tiny.toml", None, ("test", "validation"), ablation=ABLATION, curve=CURVE)
GRIDS = {
    controls.TFIDF: ({"characters": False, "C": 1.0},),
    controls.FASTTEXT: (
        {"lr": 0.1, "epoch": 2, "dim": 100, "wordNgrams": 2, "bucket": 200_000},
    ),
    controls.STATIC: ({"weighted": True, "C": 1.0},),
}  # fmt: skip


@pytest.fixture
def request_of(tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(controls, "GRIDS", GRIDS)

    def made(table: str) -> quality.Request:
        config = CONFIGS / "tiny.toml"
        overrides = (*tiny_overrides, "students.base.training.epochs=1")
        return quality.Request(SUITE, table, config, None, tmp_path / "run", 2, overrides)

    return made


def value(found: dict, system: str, metric: str) -> float:
    (row,) = [row for row in found["rows"] if (row["system"], row["metric"]) == (system, metric)]
    return row["value"]


@pytest.mark.slow
def test_every_table_from_text_to_page(request_of, tmp_path: Path, capsys):
    pytest.importorskip("fasttext")
    found = {table: quality.measure(request_of(table)) for table in quality.TABLES}

    main = found["main"]
    names = [system["name"] for system in main["config"]["systems"]]
    assert names == ["teacher", "base", "base twin", *GRIDS]
    for name in names:
        for metric in ("test.accuracy", "validation.macro_f1", "bytes", "texts_per_second"):
            assert value(main, name, metric) > 0, (name, metric)
    assert value(main, "base", "seeds") == 2 and value(main, "teacher", "seeds") == 1
    # What stage 04 measured of these seeds is what the benchmark measures.
    alone = [
        read_json(tmp_path / "run" / "students" / f"base-seed{seed}" / "metrics.json")
        for seed in (1, 2)
    ]
    mean = sum(one["validation_accuracy"] for one in alone) / 2
    assert value(main, "base", "validation.accuracy") == pytest.approx(mean)

    ablation = found["ablation"]
    same = [value(ablation, name, "test.accuracy") for name in ("+ distillation", "MSE")]
    assert same[0] == same[1]
    assert value(ablation, "KL, T = 2", "test.minus_beside") is not None
    assert value(found["curve"], "10%", "test.accuracy") is not None
    assert str(tmp_path) not in str(found)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    capsys.readouterr()
    quality.measure(request_of("ablation"))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "0 computed" in capsys.readouterr().err

    for table, one in found.items():
        write_json(tmp_path / "results" / quality_docs.file_name("tiny", table), one)
    quality_docs.write_docs(tmp_path / "results", tmp_path / "docs" / "results.md")
    assert "## tiny" in (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")


def test_a_table_without_variants_is_refused(tmp_path: Path, tiny_run: Config):
    suite = Suite("tiny", "tiny.toml", None)
    request = quality.Request(suite, "curve", CONFIGS / "tiny.toml", None, tmp_path, 1, ())
    with pytest.raises(quality.UserError, match="has no curve"):
        quality.measure(request)
