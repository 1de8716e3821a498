"""Small caches with known answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from known_answers import LABELS, answers, keys

from bert_kd.logits.cache import LogitCache, Manifest


@pytest.fixture
def manifest() -> Manifest:
    return Manifest("0123456789abcdef", LABELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logits" / "0123456789abcdef"


@pytest.fixture
def filled(folder: Path, manifest: Manifest) -> Callable[..., LogitCache]:
    """Make a cache of texts 0, 1, 2, …, with these many in each shard."""

    def fill(*counts: int) -> LogitCache:
        cache = LogitCache.create(folder, manifest)
        start = 0
        for count in counts:
            cache.append(keys(count, start), answers(count, start=start))
            start += count
        return LogitCache.open(folder)

    return fill
