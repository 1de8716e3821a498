"""Finds the tables of a source: a bundled set, a hub data set, a folder of files, or one file.

Files in a folder are found by split name (`train.csv`, `dev.jsonl.gz`, …), or named in the
configuration. `labels.json` beside them names integer labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bert_kd.config import DataConfig
from bert_kd.data.arrow_tables import count_parquet_rows, read_dataset, read_parquet
from bert_kd.data.labels import Names, numbered_names, read_names, reordered
from bert_kd.data.tables import Table, reading
from bert_kd.data.text_files import read_csv, read_jsonl, read_tsv
from bert_kd.errors import DataError, nearest

SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
BUNDLED = (Path(__file__).parents[2] / "data", Path(__file__).parents[1] / "bundled")
"""Where bundled sets lie: in a checkout, in an installed package."""


Splits = dict[str, tuple[Table, ...]]
_SHARD = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True)
class Source:
    """The tables of a source."""

    name: str
    splits: Splits
    """`train`, and `validation` and `test` where they are given; of several files, in order."""
    transfer: tuple[Table, ...]
    names: Names | None
    """Class names that the configuration or the source gives."""


def find_source(config: DataConfig) -> Source:
    """Return the tables of `config.source`.

    Raises DataError where something is missing or cannot be read.
    """
    with reading(config.source):
        return _find_source(config)


def _find_source(config: DataConfig) -> Source:
    kind, _, rest = config.source.partition(":")
    if kind == "hub":
        splits, own = _hub(rest, config)
        folder = Path()
    elif kind == "bundled":
        folder = _bundled(rest)
        splits, own = _folder(folder, config)
    else:
        path = Path(config.source).expanduser()
        if path.is_dir():
            folder = path
            splits, own = _folder(folder, config)
        else:
            folder = path.parent
            splits, own = _single(path, config)
    names = reordered(own, config.label_names) if config.label_names is not None else own
    files = [_named_file(folder, name, "transfer") for name in config.transfer]
    if kind == "bundled" and not files and (folder / "transfer.tsv").exists():
        files = [folder / "transfer.tsv"]
    return Source(config.source, splits, tuple(_table(file, config) for file in files), names)


def _single(path: Path, config: DataConfig) -> tuple[Splits, Names | None]:
    """Return one file as train; validation and test only where the configuration names them."""
    if not path.exists():
        choices = (
            sorted(str(found) for found in path.parent.glob("*")) if path.parent.is_dir() else []
        )
        raise DataError(
            f"data.source = '{path}': there is no such file or "
            f"folder{nearest(str(path), choices)}; it can be a path, hub:NAME or bundled:NAME"
        )
    if config.train is not None:
        raise DataError(
            f"data.train = '{config.train}' goes with a folder, and data.source = '{path}' is a "
            "file: set data.source to its folder, or leave data.train out"
        )
    splits: Splits = {"train": (_table(path, config),)}
    for split, name in (("validation", config.validation), ("test", config.test)):
        if name is not None:
            splits[split] = (_table(_named_file(path.parent, name, split), config),)
    return splits, _names_beside(path.parent)


def _folder(folder: Path, config: DataConfig) -> tuple[Splits, Names | None]:
    """Return the splits of a folder: files that the configuration names, else by their names."""
    splits: Splits = {}
    for split, given in (
        ("train", config.train),
        ("validation", config.validation),
        ("test", config.test),
    ):
        paths = (
            [_named_file(folder, given, split)]
            if given is not None
            else _found(folder, split, any_suffix=config.format != "auto")
        )
        if paths:
            splits[split] = tuple(_table(path, config) for path in paths)
    if "train" not in splits:
        raise DataError(
            f"there is no train file in the folder {folder} ({_held(folder)}): name one train.csv, "
            "train.tsv, train.jsonl or train.parquet, or set data.train to its name"
        )
    return splits, _names_beside(folder)


def _held(folder: Path) -> str:
    """Return what a folder holds, for messages: files first, then what cannot be read as one."""
    files, others = [], []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            files.append(path.name)
        elif path.is_dir():
            others.append(f"the folder {path.name}")
        else:
            others.append(f"{path.name}, which is {'no file' if path.exists() else 'a dead link'}")
    held = files + others
    shown = ", ".join(held[:10]) + (", …" if len(held) > 10 else "")
    return f"it holds {shown}" if held else "it is empty"


def _found(folder: Path, split: str, any_suffix: bool) -> list[Path]:
    """Return the file of `split` in `folder`, or its shards (`train-00000-of-00002.parquet`, …) in
    order; none where there is none. Raises DataError where several files could be meant.
    """
    found = []
    for file in sorted(folder.iterdir()):
        stem, suffix = _stem(file)
        named = _SHARD.sub("", stem) in SYNONYMS[split]
        if file.is_file() and named and (any_suffix or suffix in FORMATS):
            found.append(file)
    kinds = {(_SHARD.sub("", stem), suffix) for stem, suffix in map(_stem, found)}
    shards = [file for file in found if _SHARD.search(_stem(file)[0])]
    if len(found) > 1 and (len(kinds) > 1 or len(shards) < len(found)):
        raise DataError(
            f"several files in {folder} could be {split}: "
            f"{', '.join(file.name for file in found)}: set data.{split} to one of them"
        )
    for count in {_stem(file)[0].rpartition("-of-")[2] for file in shards}:
        if int(count) != len(shards):
            raise DataError(
                f"{folder} holds {len(shards)} of the {int(count)} shards of {split}: bring the "
                "others, or rename those that are to be read"
            )
    return found


def _stem(path: Path) -> tuple[str, str]:
    """Return a file's name without its endings, and the ending without `.gz`, in small letters."""
    name = path.name.lower().removesuffix(".gz")
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if dot else (name, "")


def _named_file(folder: Path, name: str, split: str) -> Path:
    """Return the file that the configuration names, in `folder` or the working directory."""
    for path in (folder / name, Path(name).expanduser()):
        if path.is_file():
            return path
    choices = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    raise DataError(
        f"data.{split} = '{name}': there is no such file in "
        f"{folder.absolute()}{nearest(name, choices)}"
    )


def _names_beside(folder: Path) -> Names | None:
    path = folder / "labels.json"
    return read_names(path) if path.exists() else None


def _table(path: Path, config: DataConfig) -> Table:
    """Return a file as a table, in the format of the configuration or of its ending.

    Raises DataError.
    """
    suffix = _stem(path)[1]
    kind = FORMATS.get(suffix) if config.format == "auto" else config.format
    if kind is None:
        raise DataError(
            f"{path}: the ending '{suffix}' names no known format; known: {', '.join(FORMATS)}, "
            "the text ones with .gz too. Rename the file or set data.format"
        )
    if kind == "parquet":
        if path.suffix.lower() == ".gz":
            raise DataError(
                f"{path}: Parquet files are packed inside already: unpack it with gunzip"
            )
        return Table(str(path), partial(read_parquet, path), "row", count_parquet_rows(path))
    if kind == "csv":
        return Table(
            str(path),
            lambda columns: read_csv(path, columns, config.columns, config.delimiter),
        )
    if kind == "tsv":
        return Table(str(path), lambda columns: read_tsv(path, columns, config.columns))
    return Table(str(path), partial(read_jsonl, path))


def _bundled(name: str) -> Path:
    """Return the folder of a bundled set, of the checkout or of the installed package.

    Raises DataError.
    """
    known = [
        folder.name
        for top in BUNDLED
        if top.is_dir()
        for folder in sorted(top.iterdir())
        if folder.is_dir() and _found(folder, "train", any_suffix=False)
    ]
    for top in BUNDLED:
        if name in known and (top / name).is_dir():
            return top / name
    raise DataError(
        f"data.source = 'bundled:{name}': there is no such set{nearest(name, known)}; bundled: "
        f"{', '.join(known) or 'none'}"
    )


def _hub(name: str, config: DataConfig) -> tuple[Splits, Names | None]:
    """Return the splits of a hub data set, and the names of its ClassLabel feature.

    Raises DataError.
    """
    import datasets

    if not name:
        raise DataError("data.source = 'hub:' names no data set: write hub:NAME")
    try:
        found = datasets.load_dataset(name, config.configuration, revision=config.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.source = 'hub:{name}' cannot be loaded ({error}): check the name, "
            "data.configuration, data.revision and the connection, or give local files"
        ) from error
    shown = name if config.configuration is None else f"{name}/{config.configuration}"
    splits: Splits = {}
    features: Any = None
    for split, given in (
        ("train", config.train),
        ("validation", config.validation),
        ("test", config.test),
    ):
        key = _hub_split(shown, split, given, list(found))
        if key is not None:
            place = f"hub:{shown}, split {key}"
            read = partial(read_dataset, place, found[key])
            splits[split] = (Table(place, read, "row", found[key].num_rows),)
            features = features or found[key].features
    feature = features.get(config.label)
    if not isinstance(feature, datasets.ClassLabel):
        return splits, None
    return splits, numbered_names(feature.names, f"hub:{shown}", list(range(len(feature.names))))


def _hub_split(shown: str, split: str, given: str | None, found: Sequence[str]) -> str | None:
    """Return the hub's name of a split, or None where validation or test is not there."""
    if given is not None:
        if given not in found:
            raise DataError(
                f"data.{split} = '{given}': hub:{shown} has no such split{nearest(given, found)}; "
                f"it has: {', '.join(found)}"
            )
        return given
    for name in SYNONYMS[split]:
        if name in found:
            return name
    if split == "train":
        raise DataError(
            f"hub:{shown} has no split called train; it has: {', '.join(found)}: set data.train to "
            "one"
        )
    return None
