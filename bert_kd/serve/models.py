"""The bundles that are served, loaded anew where they are replaced on disk.

A replaced bundle is loaded aside; only a whole one takes the old one's place, at once, for new
requests. Those in hand are answered by the one that they were asked of. Replace a bundle by
renaming, as `bert-kd export` does: files that are mapped into memory must not be written over.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bert_kd.errors import BundleError, UserError
from bert_kd.runtime.bundle import TOKENIZER, Signature, read_bundle, read_whole, signature
from bert_kd.runtime.predictor import Predictor
from bert_kd.serve.batcher import Batcher
from bert_kd.serve.wire import BundleInfo

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = re.compile(r"[\w.-]+")
"""A name that is given to a bundle."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a bundle lies, and the name that it is served under."""

    name: str
    folder: str
    given: bool = False
    """The name was given with the folder, whatever the bundle in it is called. Else it is the
    bundle's own, and a bundle of another name is refused there."""


def read_sources(asked: Sequence[str]) -> tuple[Source, ...]:
    """Return the sources that are asked for, each as `DIR` or `NAME=DIR`.

    Raises BundleError where one is no bundle, two have one name, or there is none.
    """
    if not asked:
        raise BundleError("there is no bundle to serve: give at least one")
    found = [_read_source(one) for one in asked]
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            raise BundleError(
                f"two of the bundles are called {name!r}: serve one under another name, with "
                "--bundle NAME=DIR"
            )
    return tuple(found)


def _read_source(asked: str) -> Source:
    name, given, folder = asked.partition("=")
    if not given or os.path.exists(asked):
        return Source(read_bundle(asked).name, asked)
    if not NAME.fullmatch(name):
        raise BundleError(
            f"--bundle {asked!r}: {name!r} is no name; take letters, digits, '.', '_' and '-'"
        )
    read_bundle(folder)
    return Source(name, folder, given=True)


@dataclass(frozen=True, slots=True)
class Reload:
    """A bundle was replaced on disk."""

    name: str
    refused: str | None
    """Why the old one goes on; None: the new one is served."""


class Model:
    """A predictor and the batcher before it."""

    signature: Signature = ()
    """Of the bundle, as it was loaded."""

    def __init__(self, name: str, predictor: Predictor, batcher: Batcher) -> None:
        self.name = name
        self.predictor = predictor
        self.batcher = batcher
        bundle = predictor.bundle
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
        sources: Sequence[Source],
        make_batcher: Callable[[str, Predictor], Batcher],
        open_bundle: Callable[[Path], Predictor],
    ) -> None:
        """Load the bundles. Raises BundleError where one can't be, or has another name now."""
        self._sources = sources
        self._make_batcher = make_batcher
        self._open = open_bundle
        self._models = {source.name: self._load(source) for source in sources}
        self._refused: dict[str, Signature] = {}
        self.default = sources[0].name

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
        for source in self._sources:
            name = source.name
            seen = signature(Path(source.folder))
            if seen is None or seen in (self._models[name].signature, self._refused.get(name)):
                continue
            try:
                model = await loop.run_in_executor(executor, self._load, source)
            except Exception as error:
                # Whatever it is, the old one goes on. As it is on disk, it is not tried again.
                self._refused[name] = seen
                why = str(error) if isinstance(error, UserError) else repr(error)
                found.append(Reload(name, why))
                continue
            self._models[name] = model
            self._refused.pop(name, None)
            found.append(Reload(name, None))
        return found

    def _load(self, source: Source) -> Model:
        """Return the model of a source's folder, all of one version."""
        folder = Path(source.folder)

        def read() -> Model:
            predictor = self._open(folder)
            if not source.given and predictor.bundle.name != source.name:
                raise BundleError(
                    f"{folder} now holds the bundle {predictor.bundle.name!r}, and it is "
                    f"served as {source.name!r}: start the server anew to serve the other"
                )
            return Model(source.name, predictor, self._make_batcher(source.name, predictor))

        model, seen = read_whole(folder, read)
        model.signature = seen
        return model
