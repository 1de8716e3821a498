"""Whether the output of a stage stands: by the stamp beside it, what lies in a folder is current,
refused, or kept all the same.

Not here: what a stamp is made of (`provenance.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bert_kd.errors import StageError
from bert_kd.progress import say
from bert_kd.store import Stamp


@dataclass(frozen=True)
class Wishes:
    """Which stages to make again (`force`), and whose output to keep though its settings changed
    (`keep`).
    """

    force: Collection[str] = field(default_factory=frozenset)
    keep: Collection[str] = field(default_factory=frozenset)


NO_WISHES = Wishes()


def is_current(folder: Path, stamp: Stamp) -> bool:
    """Whether the output in `folder` is that of `stamp`."""
    found = Stamp.read(folder)
    return found is not None and not stamp.differences(found)


def stands(folder: Path, stamp: Stamp, wishes: Wishes) -> bool:
    """Whether the output in `folder` stands; raises StageError where it is another's."""
    if stamp.stage in wishes.force:
        return False
    found = Stamp.read(folder)
    if found is None:
        return False
    differences = stamp.differences(found)
    if not differences:
        say(f"{stamp.stage}: {folder} is current")
        return True
    _refuse_unless_kept(folder, stamp, wishes, differences)
    return True


def require(folder: Path, stamp: Stamp, wishes: Wishes) -> None:
    """Raise StageError where `folder` does not hold the finished output that `stamp` stands for."""
    found = Stamp.read(folder)
    if found is None:
        raise StageError(f"{folder} is not finished: run {stamp.stage} first")
    differences = stamp.differences(found)
    if differences:
        _refuse_unless_kept(folder, stamp, wishes, differences)


def _refuse_unless_kept(
    folder: Path, stamp: Stamp, wishes: Wishes, differences: Sequence[str]
) -> None:
    shown = "; ".join(differences[:5]) + ("; …" if len(differences) > 5 else "")
    if stamp.stage in wishes.keep:
        say(f"{stamp.stage}: {folder} is kept, though it was made otherwise ({shown})")
        return
    raise StageError(
        f"{folder} was made otherwise ({shown}). To make it again: bert-kd {stamp.stage} --force "
        f"(or bert-kd run --force {stamp.stage}); to go on with it as it is: --keep {stamp.stage}"
    )
