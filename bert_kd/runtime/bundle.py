"""The exported folder: what lies in it, and reading it with every doubt checked.

    model.onnx          the student for ONNX Runtime
    model.safetensors   the same weights as trained, for other engines
    tokenizer.json      for the `tokenizers` package, truncation inside
    bundle.json         the facts below, with the SHA-256 of the three files above
    README.md           the model card, for people; it may be edited

Here: `Bundle`, `read_bundle`. Not here: making one (`export.py`), answering (`predictor.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bert_kd.errors import BundleError
from bert_kd.store import versions

KIND = "bert_kd bundle"
FORMAT = 1
MODEL, WEIGHTS, TOKENIZER = "model.onnx", "model.safetensors", "tokenizer.json"
FACTS, CARD = "bundle.json", "README.md"
FILES = (MODEL, WEIGHTS, TOKENIZER)

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Agreement:
    """How far the exported model's answers lie from torch's, as measured at export."""

    rows: int
    largest_difference: float
    """In a logit."""
    label_agreement: float
    """Share of rows with the same label."""


@dataclass(frozen=True)
class Bundle:
    """The facts of an exported student, as in `bundle.json`."""

    folder: Path
    name: str
    labels: tuple[str, ...]
    """In the order of the logits' columns."""
    pair: bool
    """Whether it compares two texts."""
    shape: Mapping[str, Any]
    """The student's sizes, by the names of `bert_kd.student.model.Shape`."""
    parameters: int
    parameters_without_embeddings: int
    files: Mapping[str, str]
    """File name → SHA-256."""
    bytes: int
    """Of these files, together."""
    agreement: Agreement
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """Return what `bundle.json` holds."""
        facts = asdict(self)
        del facts["folder"]
        return {"kind": KIND, "format": FORMAT, **facts}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bundle(folder: Path | str, verify: bool = True) -> Bundle:
    """Read a bundle's facts and check that its files are there; `verify` compares their SHA-256.

    Raises BundleError, naming the file, where anything is missing, damaged, or of another format.
    """
    folder = Path(folder)
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is not a bundle: it holds no {FACTS}; give a folder that `bert-kd export` "
            "wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise BundleError(f"{path} is not the {FACTS} of a bundle that `bert-kd export` wrote")
    if facts.get("format") != FORMAT:
        raise BundleError(
            f"{path} has format {facts.get('format')!r}, and this version of bert_kd reads format "
            f"{FORMAT}: export the student again, or install the version that wrote it"
        )
    bundle = _parse(folder, facts)
    for name, digest in bundle.files.items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name} is missing: copy or export the bundle again")
        if verify and sha256(folder / name) != digest:
            raise _damaged(folder / name, f"its SHA-256 is not the one in {FACTS}")
    return bundle


def _parse(folder: Path, facts: Mapping[str, Any]) -> Bundle:
    """Return the checked facts of a `bundle.json` of the right kind and format."""
    path = folder / FACTS

    def take(values: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind:
        value = values.get(key)
        if kind is float and type(value) is int:
            value = float(value)
        # bool is an int to Python, not to a reader of the file.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _damaged(path, f"{key} is {value!r:.80}, not {kind.__name__}")
        return value

    labels = take(facts, "labels", list)
    if len(labels) < 2 or len(set(map(str, labels))) < len(labels):
        raise _damaged(path, "labels must be two or more different names")
    if not all(isinstance(label, str) for label in labels):
        raise _damaged(path, "labels must be strings")
    shape = take(facts, "shape", dict)
    if take(shape, "classes", int) != len(labels):
        raise _damaged(path, f"{len(labels)} labels for {shape['classes']} classes")
    take(shape, "vocabulary", int)
    if bool(shape.get("pair")) != take(facts, "pair", bool):
        raise _damaged(path, "pair is not what shape says")
    files = take(facts, "files", dict)
    if set(files) != set(FILES):
        raise _damaged(path, f"files must be {', '.join(FILES)}")
    agreement = take(facts, "agreement", dict)
    return Bundle(
        folder=folder,
        name=take(facts, "name", str),
        labels=tuple(labels),
        pair=take(facts, "pair", bool),
        shape=shape,
        parameters=take(facts, "parameters", int),
        parameters_without_embeddings=take(facts, "parameters_without_embeddings", int),
        files=files,
        bytes=take(facts, "bytes", int),
        agreement=Agreement(
            rows=take(agreement, "rows", int),
            largest_difference=take(agreement, "largest_difference", float),
            label_agreement=take(agreement, "label_agreement", float),
        ),
        metrics=take(facts, "metrics", dict),
        training=take(facts, "training", dict),
        versions=take(facts, "versions", dict),
        created=take(facts, "created", str),
    )


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is damaged ({why}): copy or export the bundle again")
