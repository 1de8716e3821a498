"""The exported folder: what lies in it, and reading it with every doubt checked.

    native.safetensors  the student for the native runtime; not in every bundle
    model.onnx          the student for ONNX Runtime
    model.safetensors   the weights as trained, for anything else
    tokenizer.json      for the `tokenizers` package, truncation inside
    bundle.json         the facts below, with the checksum and SHA-256 of the files above
    README.md           the model card, for people; it may be edited

Format 1, which had no native runtime, is read as well. `native.safetensors` stays mapped into
memory while its engine lives: a bundle in use is replaced as a whole, by renaming, as `export`
does; who writes into that file ends the processes that read it (SIGBUS).

Here: `Bundle`, `read_bundle`, `verify`, and `read_whole` for folders that may be replaced while
they are read. Not here: making one (`export.py`) and answering (`predictor.py`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from bert_kd.errors import BundleError, UserError
from bert_kd.runtime.agreement import Agreement
from bert_kd.runtime.digests import checksum, sha256
from bert_kd.runtime.engine import EngineName, Precision

KIND = "bert_kd bundle"
FORMAT = 2
NATIVE, MODEL, WEIGHTS = "native.safetensors", "model.onnx", "model.safetensors"
TOKENIZER, FACTS, CARD = "tokenizer.json", "bundle.json", "README.md"
MODELS: Mapping[EngineName, str] = {"native": NATIVE, "onnx": MODEL}
"""The file that each engine runs."""

ATTEMPTS = 5
"""At reading a bundle that is replaced meanwhile."""
PAUSE_SECONDS = 0.02
"""Between attempts, where there is no bundle: the old folder is renamed before the new one."""

Kind = TypeVar("Kind")
Made = TypeVar("Made")
Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, time and size of a bundle's files."""


def _versions() -> dict[str, str]:
    # Deferred: reading a bundle should not wait for what writing one needs.
    from bert_kd.store import versions

    return versions()


@dataclass(frozen=True)
class Runtime:
    """A form in which a bundle holds its student, for one engine."""

    precision: Precision
    bytes: int
    """Of its file."""
    agreement: Agreement
    table: str | None = None
    """Type of the folded embedding's values (native): fp16 or int8."""
    table_bytes: int = 0
    """Of the file's, the folded embedding's."""


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
    checksums: Mapping[str, str]
    """File name → XXH3, by which damage is found; none in older bundles."""
    bytes: int
    """Of these files, together."""
    max_tokens: int | None
    """Texts are cut at this many tokens; None: never."""
    runtimes: Mapping[EngineName, Runtime]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """Return what `bundle.json` holds."""
        facts = asdict(self)
        del facts["folder"]
        return {"kind": KIND, "format": FORMAT, **facts}


def read_bundle(folder: Path | str) -> Bundle:
    """Read a bundle's facts; none of its other files is looked at (`verify` does that).

    Raises BundleError where they are missing, damaged, or of another format.
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
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}): give a folder that `bert-kd export` wrote, "
            "and that you may read"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise BundleError(f"{path} is not the {FACTS} of a bundle that `bert-kd export` wrote")
    if facts.get("format") == 1:
        facts = _from_first_format(folder, facts)
    elif facts.get("format") != FORMAT:
        raise BundleError(
            f"{path} has format {facts.get('format')!r}, and this version of bert_kd reads formats "
            f"1 and {FORMAT}: export the student again, or install the version that wrote it"
        )
    return _parse(folder, facts)


def verify(bundle: Bundle, names: Iterable[str] | None = None, digests: bool = True) -> None:
    """Check that these files of a bundle (None: all) are there and, with `digests`, that their
    content is the one that `bundle.json` knows: by their checksum or, of older bundles, by their
    SHA-256. Raises BundleError naming the first that isn't so.
    """
    for name in bundle.files if names is None else names:
        path = bundle.folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing: copy or export the bundle again")
        if digests:
            _compare(path, bundle.files[name], bundle.checksums.get(name))


def signature(folder: Path) -> Signature | None:
    """Return what tells a bundle from one that replaces it, None where there is none just now."""
    found = []
    for name in (FACTS, TOKENIZER, *MODELS.values()):
        try:
            facts = os.stat(folder / name)
        except OSError:
            if name == FACTS:
                return None
            continue
        found.append((name, facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def read_whole(folder: Path, read: Callable[[], Made]) -> tuple[Made, Signature]:
    """Return what `read` makes of the bundle in `folder`, and the bundle's signature.

    All of it is of one version: where the bundle is replaced meanwhile, it is read again. Raises
    what `read` raises of a bundle that stays, and BundleError where it keeps changing.
    """
    for left in reversed(range(ATTEMPTS)):
        seen = signature(folder)
        try:
            made = read()
        except (UserError, OSError):
            if seen == signature(folder) and (seen is not None or not left):
                raise
        else:
            if seen is not None and seen == signature(folder):
                return made, seen
        if seen is None:
            time.sleep(PAUSE_SECONDS)
    raise BundleError(f"{folder} keeps changing while it is read: try again when it is whole")


def _compare(path: Path, digest: str, quick: str | None) -> None:
    """Raise BundleError where a file's checksum or, without one, SHA-256 is another."""
    try:
        same = sha256(path) == digest if quick is None else checksum(path) == quick
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}): copy or export the bundle again"
        ) from None
    if not same:
        kind = "SHA-256" if quick is None else "checksum"
        raise _damaged(path, f"its {kind} is not the one in {FACTS}")


def _from_first_format(folder: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the facts of a bundle of format 1 as format 2 has them."""
    try:
        tokenizer = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
        longest = (tokenizer.get("truncation") or {}).get("max_length")
        size = (folder / MODEL).stat().st_size
    except (OSError, ValueError, AttributeError, RecursionError):
        longest, size = None, 0  # said when the file is read
    onnx = {"precision": "fp32", "bytes": size, "agreement": facts.get("agreement")}
    return {**facts, "max_tokens": longest, "runtimes": {"onnx": onnx}}


def _parse(folder: Path, facts: Mapping[str, Any]) -> Bundle:
    """Return the checked facts of a `bundle.json` of the right kind and format."""
    path = folder / FACTS
    labels = _take(path, facts, "labels", list)
    if len(labels) < 2 or len(set(map(str, labels))) < len(labels):
        raise _damaged(path, "labels must be two or more different names")
    if not all(isinstance(label, str) for label in labels):
        raise _damaged(path, "labels must be strings")
    shape = _take(path, facts, "shape", dict)
    if _take(path, shape, "classes", int) != len(labels):
        raise _damaged(path, f"{len(labels)} labels for {shape['classes']} classes")
    _take(path, shape, "vocabulary", int)
    if bool(shape.get("pair")) != _take(path, facts, "pair", bool):
        raise _damaged(path, "pair is not what shape says")
    runtimes = _take(path, facts, "runtimes", dict)
    if not runtimes or not runtimes.keys() <= MODELS.keys():
        raise _damaged(path, f"runtimes must be of {', '.join(MODELS)}")
    files = _take(path, facts, "files", dict)
    expected = [*(MODELS[name] for name in MODELS if name in runtimes), WEIGHTS, TOKENIZER]
    if set(files) != set(expected):
        raise _damaged(path, f"files must be {', '.join(expected)}")
    checksums = _take_or_none(path, facts, "checksums", dict) or {}
    if checksums and checksums.keys() != files.keys():
        raise _damaged(path, "checksums must be of all files")
    return Bundle(
        folder=folder,
        name=_take(path, facts, "name", str),
        labels=tuple(labels),
        pair=facts["pair"],
        shape=shape,
        parameters=_take(path, facts, "parameters", int),
        parameters_without_embeddings=_take(path, facts, "parameters_without_embeddings", int),
        files=files,
        checksums=checksums,
        bytes=_take(path, facts, "bytes", int),
        max_tokens=_take_or_none(path, facts, "max_tokens", int),
        runtimes={
            name: _runtime(path, _take(path, runtimes, name, dict))
            for name in MODELS
            if name in runtimes
        },
        metrics=_take(path, facts, "metrics", dict),
        training=_take(path, facts, "training", dict),
        versions=_take(path, facts, "versions", dict),
        created=_take(path, facts, "created", str),
    )


def _runtime(path: Path, values: Mapping[str, Any]) -> Runtime:
    """Return the checked facts of one runtime."""
    precision = _take(path, values, "precision", str)
    if precision not in get_args(Precision):
        raise _damaged(path, f"precision is {precision!r:.80}")
    agreement = _take(path, values, "agreement", dict)
    return Runtime(
        precision=cast(Precision, precision),
        bytes=_take(path, values, "bytes", int),
        agreement=Agreement(
            rows=_take(path, agreement, "rows", int),
            largest_difference=_take(path, agreement, "largest_difference", float),
            label_agreement=_take(path, agreement, "label_agreement", float),
            largest_probability_difference=_take_or_none(
                path, agreement, "largest_probability_difference", float
            ),
            labelled=_take_or_none(path, agreement, "labelled", int) or 0,
            accuracy_change=_take_or_none(path, agreement, "accuracy_change", float),
        ),
        table=_take_or_none(path, values, "table", str),
        table_bytes=_take_or_none(path, values, "table_bytes", int) or 0,
    )


def _take(path: Path, values: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind:
    """Return the value of `key`, of this kind. Raises BundleError where it is missing or other."""
    value = values.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    # bool is an int to Python, not to a reader of the file.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _damaged(path, f"{key} is {value!r:.80}, not {kind.__name__}")
    return value


def _take_or_none(path: Path, values: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind | None:
    return None if values.get(key) is None else _take(path, values, key, kind)


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is damaged ({why}): copy or export the bundle again")
