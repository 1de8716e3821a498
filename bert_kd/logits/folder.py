"""The shard files of a cache folder: listed, read with damage handled, cleaned up.

The one place that decides what happens to a file that cannot be used: it is named, renamed to
`….damaged` and left out. What the shards hold is the business of `shard`, what is asked of them
of `cache` and `inspection`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bert_kd.logits.shard import Shard, ShardDamaged
from bert_kd.progress import say

STALE_SECONDS = 3600.0
"""A temporary file this old was left by a writer that died: writing one takes seconds."""
SUFFIX = ".damaged"

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """A shard that could not be used, and why."""

    shard: str
    reason: str


@dataclass(frozen=True)
class ShardFolder:
    """The shards in `folder` that follow `schema`."""

    folder: Path
    schema: Any

    def names(self) -> list[str]:
        """Return the file names of the shards, the oldest first."""
        with os.scandir(self.folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.startswith("part-") and entry.name.endswith(".parquet")
            )

    def use(self, name: str, use: Callable[[Shard], T], damaged: list[Damage]) -> T | None:
        """Return `use(shard)`, or None where the shard is gone or damaged.

        A damaged one is set aside, the user told, and `damaged` extended. `use` may have run in
        part by then.
        """
        try:
            with Shard(self.folder / name, self.schema) as shard:
                return use(shard)
        except FileNotFoundError:
            return None  # set aside by another process since the folder was listed
        except ShardDamaged as error:
            damage = Damage(name, str(error))
        damaged.append(damage)
        try:
            os.replace(self.folder / name, self.folder / f"{name}{SUFFIX}")
        except FileNotFoundError:
            pass
        except OSError as error:
            say(
                f"the shard {self.folder / name} is damaged ({damage.reason}) and could not be set "
                f"aside ({error.strerror}); its rows count as missing"
            )
        else:
            say(
                f"the shard {self.folder / name} is damaged ({damage.reason}) and was set aside as "
                f"{name}{SUFFIX}; its rows count as missing"
            )
        return None

    def set_aside(self) -> tuple[str, ...]:
        """Return the names of the damaged shards that lie in the folder."""
        return tuple(sorted(path.name for path in self.folder.glob(f"part-*{SUFFIX}")))

    def remove_leftovers(self) -> tuple[str, ...]:
        """Remove the temporary files of writers that died over an hour ago; return their names."""
        removed = []
        for path in sorted(self.folder.glob(".*.tmp")):
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
                    removed.append(path.name)
            except OSError:
                continue  # another process was faster, or the folder may only be read
        return tuple(removed)
