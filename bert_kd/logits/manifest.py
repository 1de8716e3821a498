"""The manifest of a logit cache: which teacher answered, in which classes, and in what form."""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bert_kd import store
from bert_kd.errors import CacheError, UserError
from bert_kd.logits.shard import FORMAT

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What all shards of a cache share."""

    teacher: str
    """Fingerprint of the teacher."""
    labels: tuple[str, ...]
    """Class names, in the order of the logit columns."""
    kind: Literal["logits", "probabilities"] = "logits"
    """What the teacher gave; probabilities are stored as centred log-probabilities."""
    precision: str = "fp32"
    feature_size: int | None = None
    """Values of a row's features; None: the cache holds no features."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Notes (model name, maximum length, `imported_from`), which don't tell caches apart."""

    @property
    def remedy(self) -> str:
        """What the user runs to fill in missing answers."""
        if "imported_from" in self.facts:
            return "import answers to the missing texts with `bert-kd logits import`"
        return "run `bert-kd cache-logits`: only what is missing is computed"

    def differences(self, other: Manifest) -> list[str]:
        """Return what tells this cache apart from `other`, as `labels: mine, not theirs`."""
        names = ("teacher", "labels", "kind", "precision", "feature_size")
        return [
            f"{name}: {getattr(self, name)!r}, not {getattr(other, name)!r}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, None if there is none, CacheError if it is unreadable."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        found = store.read_json(path)
    except UserError as error:
        raise CacheError(f"{error}; the shards beside it are kept") from None
    if not isinstance(found, dict) or not isinstance(found.get("labels"), list):
        raise CacheError(f"{path} is not the manifest of a logit cache")
    if found.pop("format", None) != FORMAT:
        raise CacheError(
            f"{path} is not of format {FORMAT}, the one this version of bert_kd reads: "
            "use the version that wrote it, or another folder"
        )
    try:
        return Manifest(**{**found, "labels": tuple(found["labels"])})
    except TypeError as error:
        raise CacheError(f"{path} is not the manifest of a logit cache: {error}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest unless the folder has one: the first of several writers wins."""
    candidate = folder / f".{MANIFEST}.{uuid.uuid4().hex[:8]}.tmp"
    store.write_json(candidate, {"format": FORMAT, **asdict(manifest)})
    try:
        # Unlike a rename, a link never replaces what is there, and it appears whole.
        os.link(candidate, folder / MANIFEST)
    except FileExistsError:
        pass
    except OSError:
        # A file system without links. The reader compares what stands there in the end, whoever
        # wrote it.
        if not (folder / MANIFEST).exists():
            os.replace(candidate, folder / MANIFEST)
    finally:
        candidate.unlink(missing_ok=True)
