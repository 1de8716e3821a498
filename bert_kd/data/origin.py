"""Has the source changed since it was prepared?"""

from __future__ import annotations

from pathlib import Path

from bert_kd.config import DataConfig
from bert_kd.data.sources import find_source
from bert_kd.data.tables import reading
from bert_kd.store import fingerprint, fingerprint_files


def source_fingerprint(config: DataConfig) -> str:
    """Return a fingerprint of the files that a source is read from, by content, with their order.

    Of a hub data set it covers name, configuration and revision: set `data.revision` to be certain.
    Raises DataError where the source is not there or cannot be read.
    """
    if config.source.startswith("hub:"):
        return fingerprint(config.source, config.configuration, config.revision)
    source = find_source(config)
    tables = [table for group in source.splits.values() for table in group]
    tables += source.transfer
    files = [Path(table.name) for table in tables]
    beside = files[0].parent / "labels.json"
    if beside.exists():
        files.append(beside)
    with reading(config.source):
        contents = fingerprint_files(files)
    return fingerprint(
        {split: len(group) for split, group in source.splits.items()},
        len(source.transfer),
        contents,
    )
