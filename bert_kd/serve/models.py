"""The bundles that are served, loaded anew where they are replaced on disk.

A replaced bundle is loaded aside; only a whole one takes the old one's place, at once, for new
requests. Those in hand are answered by the one that they were asked of. Replace a bundle by
renaming, as `bert-kd export` does: files that are mapped into memory must not be written over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bert_kd.errors import BundleError, UserError
from bert_kd.runtime.bundle import FACTS, MODELS, TOKENIZER
from bert_kd.runtime.predictor import Predictor
from bert_kd.serve.batcher import Batcher
from bert_kd.serve.wire import BundleInfo

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, time and size of a bundle's files."""
ATTEMPTS = 5
"""At loading a bundle that is replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class Reload:
    """A bundle was replaced on disk."""

    name: str
    refused: str | None
    """Why the old one goes on; None: the new one is served."""


class Model:
    """A predictor and the batcher before it."""

    def __init__(self, predictor: Predictor, batcher: Batcher, signature: Signature) -> None:
        self.predictor = predictor
        self.batcher = batcher
        self.signature = signature
        bundle = predictor.bundle
        self.name = bundle.name
        self.pair = predictor.pair
        self.labels = predictor.labels
        self.max_tokens = bundle.max_tokens
        # Kept, so that it is this bundle's also when the folder holds another.
        self._tokenizer_text = (bundle.folder / TOKENIZER).read_bytes()

    @property
    def info(self) -> BundleInfo:
        """The bundle's facts for `/info`."""
        bundle, engine = self.predictor.bundle, self.predictor.engine
        return BundleInfo(
            name=self.name,
            labels=list(self.labels),
            pair=self.pair,
            engine=engine.name,
            precision=engine.precision,
            max_tokens=self.max_tokens,
            parameters=bundle.parameters,
            bytes=bundle.bytes,
            created=bundle.created,
        )

    def first_too_long(self, texts: Sequence[str]) -> int | None:
        """Return the position of the first text of more tokens than the model reads, or None."""
        if self.max_tokens is None:
            return None
        for position, text in enumerate(texts):
            if len(self._counter.encode(text, add_special_tokens=False)) > self.max_tokens:
                return position
        return None

    @cached_property
    def _counter(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(self._tokenizer_text)
        tokenizer.no_truncation()
        return tokenizer


class Models:
    """The models served, by name; the first is the default."""

    def __init__(
        self,
        folders: Sequence[Path],
        make_batcher: Callable[[Predictor], Batcher],
        open_bundle: Callable[[Path], Predictor],
    ) -> None:
        """Load the bundles. Raises BundleError where one can't be, or two have one name."""
        self._make_batcher = make_batcher
        self._open = open_bundle
        self._models: dict[str, Model] = {}
        self._folders: dict[str, Path] = {}
        self._refused: dict[str, Signature] = {}
        for folder in folders:
            predictor, seen = self._load(folder)
            name = predictor.bundle.name
            if name in self._models:
                raise BundleError(
                    f"two of the bundles are called {name!r}: serve them on two ports, or export "
                    "one under another name"
                )
            self._models[name] = Model(predictor, make_batcher(predictor), seen)
            self._folders[name] = folder
        if not self._models:
            raise BundleError("there is no bundle to serve: give at least one")
        self.default = next(iter(self._models))

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def __contains__(self, name: str) -> bool:
        return name in self._models

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the default one first."""
        return tuple(self._models)

    @property
    def queued(self) -> int:
        """Texts that wait to be computed."""
        return sum([model.batcher.queued for model in self._models.values()])

    async def reload(self, executor: Executor) -> list[Reload]:
        """Load what was replaced on disk since, and return what came of it."""
        found = []
        loop = asyncio.get_running_loop()
        for name, folder in self._folders.items():
            seen = signature(folder)
            if seen is None or seen in (self._models[name].signature, self._refused.get(name)):
                continue
            try:
                predictor, loaded = await loop.run_in_executor(executor, self._load, folder)
                if predictor.bundle.name != name:
                    raise BundleError(
                        f"{folder} now holds the bundle {predictor.bundle.name!r}: start the "
                        "server anew to serve it under that name"
                    )
            except Exception as error:
                # Whatever it is, the old one goes on. As it is on disk, it is not tried again.
                self._refused[name] = seen
                why = str(error) if isinstance(error, UserError) else repr(error)
                found.append(Reload(name, why))
                continue
            self._models[name] = Model(predictor, self._make_batcher(predictor), loaded)
            self._refused.pop(name, None)
            found.append(Reload(name, None))
        return found

    def _load(self, folder: Path) -> tuple[Predictor, Signature]:
        """Return the folder's predictor, all of one version, and what its files looked like."""
        for _ in range(ATTEMPTS):
            seen = signature(folder)
            try:
                predictor = self._open(folder)
            except UserError:
                if seen is not None and seen == signature(folder):
                    raise
                continue  # it was replaced in between
            if seen is not None and seen == signature(folder):
                return predictor, seen
        raise BundleError(f"{folder} keeps changing while it is loaded, or is no bundle")


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
