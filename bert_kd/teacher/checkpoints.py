"""The checkpoints of a fine-tuning: which may be resumed, which are set aside.

`transformers.Trainer` writes and rotates the folders `checkpoint-STEP`. Beside them lies
`settings.json` with the fingerprint of the configuration and the data; in each lies
`complete.json`, written last, with the sizes of its files. One without it was being written when
the process died, and is never resumed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_kd.errors import UserError
from bert_kd.progress import say
from bert_kd.store import make_folder, read_json, write_json

SETTINGS = "settings.json"
COMPLETE = "complete.json"
STATE = "trainer_state.json"
KEPT = 3
"""Checkpoints on disk: the best, the last, and the one that is being written."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and the Trainer's record of the training up to it."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["global_step"])


def prepare_folder(folder: Path, fingerprint: str) -> None:
    """Make `folder` ready for checkpoints of this fingerprint; others are set aside, and those of
    this one that were are taken back.
    """
    settings = folder / SETTINGS
    if folder.exists():
        try:
            found = str(read_json(settings)["fingerprint"])
        except UserError:
            found = "unknown"
        if found == fingerprint:
            return
        _set_aside(folder, _aside(folder, found))
    aside = _aside(folder, fingerprint)
    if aside.exists():
        os.replace(aside, folder)
        say("teacher checkpoints of these settings and data were set aside before: taken back")
        return
    make_folder(folder)
    write_json(settings, {"fingerprint": fingerprint})


def _set_aside(folder: Path, aside: Path) -> None:
    """Move a folder of checkpoints away; one without any is removed."""
    if not any(folder.glob("checkpoint-*")):
        shutil.rmtree(folder)
        return
    if aside.exists():
        shutil.rmtree(aside)
    os.replace(folder, aside)
    say(f"teacher checkpoints of other settings or data were set aside: {aside}")


def _aside(folder: Path, fingerprint: str) -> Path:
    return folder.with_name(f"{folder.name}.{fingerprint}.old")


def mark_complete(folder: Path) -> None:
    """Flush all files of a checkpoint to the disk and say in it that it is whole."""
    sizes = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[file.name] = file.stat().st_size
    write_json(folder / COMPLETE, {"bytes": sizes})


def last_whole(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None; half-written ones are removed."""
    whole = []
    for found in folder.glob("checkpoint-*"):
        if _is_whole(found):
            whole.append(Checkpoint(found, read_json(found / STATE)))
        else:
            say(f"{found.name} was only half written when the last run ended: not used")
            shutil.rmtree(found)
    return max(whole, key=lambda checkpoint: checkpoint.step, default=None)


def _is_whole(folder: Path) -> bool:
    try:
        sizes = read_json(folder / COMPLETE)["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (UserError, OSError):
        return False
