"""What many rooms' tests share: a one-layer BERT from a config, a tiny run of the whole line."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import CONFIGS, HELPDESK

from bert_kd.config import Config
from bert_kd.config_file import load_config


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep torch to one thread: these models are too small to share, and results must not vary."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a one-layer BERT from a config; its WordPiece has the bundled data's words."""
    from bert_kd.teacher.untrained import write_untrained

    lines = (HELPDESK / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    texts = [line.split("\t")[0] for line in lines]
    write_untrained(folder, texts, layers=1, hidden_size=32, vocabulary=800, positions=64)
    return folder


@pytest.fixture(scope="session")
def tiny_overrides(tiny_bert: Path) -> list[str]:
    """What `tiny.toml` needs to be told here."""
    return [f"teacher.model={tiny_bert}"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> Config:
    """The configuration of a finished run of the tiny line, 01 to 06. To be read, not changed."""
    from bert_kd.stages import run_stages

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = load_config(CONFIGS / "tiny.toml", [*tiny_overrides, f"run={folder}"])
    run_stages(config)
    return config
