"""Files of texts answered in bulk, in constant memory: all columns kept, label and score added.

Reading and writing go on in threads beside the model. A run that is killed goes on, given the same
command, where it was.

Here: `predict_file`. Not here: the formats (`row_files.py`), what a killed run leaves behind
(`kept_answers.py`) and the model (`predictor.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_kd.data.arrow_tables import count_parquet_rows
from bert_kd.data.tables import Columns, checked
from bert_kd.errors import BundleError, DataError, nearest
from bert_kd.progress import progress, say
from bert_kd.runtime.bundle import MODELS, TOKENIZER
from bert_kd.runtime.engine import Floats
from bert_kd.runtime.kept_answers import keeping, key_of
from bert_kd.runtime.pipeline import ahead, behind
from bert_kd.runtime.predictor import Predictor
from bert_kd.runtime.row_files import (
    Column,
    Part,
    ending,
    read_parts,
    require_file,
    writing_parts,
)
from bert_kd.store import fingerprint, writing

BATCH_ROWS = 16384
"""Rows that are read, answered and written together. Up to five times as many are in memory."""


@dataclass(frozen=True)
class Predicted:
    """What was done to a file."""

    rows: int
    seconds: float
    rows_per_second: float
    columns: tuple[str, ...]
    """Names of the added columns."""
    resumed: int = 0
    """Rows whose answers a run that was killed had left."""


@dataclass(frozen=True)
class Asked:
    """A part of a file, and its texts."""

    part: Part
    texts: list[str]
    texts_b: list[str] | None
    key: bytes


@dataclass(frozen=True)
class Answered:
    """A part of a file, and its texts' probabilities [rows, classes]."""

    part: Part
    scores: Floats


def predict_file(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    text: str = "text",
    text_b: str | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
    batch_rows: int = BATCH_ROWS,
) -> Predicted:
    """Answer the texts of a CSV, TSV, JSON lines or Parquet file; write it with label and score.

    `text` and, for pairs, `text_b` name the columns. `output` holds every column and row of
    `source` in order and, to the right, `label`, `score` and, with `probabilities`, `score_<label>`
    for each label; a name that `source` has already gets `predicted_` before it. Either file may be
    of any of the formats, by its ending. `output` appears when it is whole. `batch_rows` rows are
    answered at a time. What fails or is killed in a later part leaves its answers in
    `.<output>.answers` beside `output`, and the same call goes on after them.

    Raises DataError where a file, row or column cannot be used, or another run makes the same
    output; BundleError where a bundle of pairs is given one text and the reverse; UserError where
    `output` cannot be written where it is to be.
    """
    _check(predictor, source, output, text_b, overwrite)
    total = count_parquet_rows(source) if ending(source) == ".parquet" else None
    start = time.monotonic()
    done = resumed = 0
    added: dict[str, str] | None = None
    with (
        progress("predict", total, "texts") as advance,
        keeping(output, _model(predictor)) as kept,
        writing(output) as aside,
        writing_parts(aside, output) as write,
    ):

        def finish(answered: Answered) -> None:
            assert added is not None
            columns = _columns(predictor.labels, answered.scores, added, answered.part, source)
            write(answered.part.with_columns(columns))
            advance(len(answered.scores))

        with behind(finish) as hand_over:
            for asked in ahead(_asked(source, batch_rows, text, text_b)):
                if added is None:
                    added = _names(predictor.labels, probabilities, asked.part.names, source)
                scores = kept.find(asked.key)
                if scores is None:
                    if resumed == done and resumed:
                        say(f"{resumed:,} texts were answered before; going on after them")
                    scores = predictor.probabilities(asked.texts, asked.texts_b)  # [rows, classes]
                    kept.add(asked.key, scores)
                else:
                    resumed += len(scores)
                hand_over(Answered(asked.part, scores))
                done += len(scores)
    seconds = time.monotonic() - start
    rate = done / max(seconds, 1e-9)
    return Predicted(done, seconds, rate, tuple((added or {}).values()), resumed)


def _asked(source: Path, batch_rows: int, text: str, text_b: str | None) -> Iterator[Asked]:
    """Yield the parts of a file with their texts, checked."""
    for number, part in enumerate(read_parts(source, batch_rows)):
        if number == 0:
            _require(part, text, text_b, source)
        texts, texts_b = _texts(part, text, text_b, source)
        yield Asked(part, texts, texts_b, key_of(texts, texts_b))


def _model(predictor: Predictor) -> str:
    """Return what tells this predictor's answers from another's."""
    files, engine = predictor.bundle.files, predictor.engine
    return fingerprint(engine.name, files[MODELS[engine.name]], files[TOKENIZER])


def _check(
    predictor: Predictor, source: Path, output: Path, text_b: str | None, overwrite: bool
) -> None:
    """Refuse, before any work, what cannot end well."""
    if predictor.pair and text_b is None:
        raise BundleError(
            f"the bundle {predictor.bundle.name!r} compares two texts: name the column of the "
            "second one too (text_b, --text-b)"
        )
    if not predictor.pair and text_b is not None:
        raise BundleError(
            f"the bundle {predictor.bundle.name!r} reads single texts: leave text_b (--text-b) out"
        )
    require_file(source)
    ending(output)
    try:
        there = output.exists()
    except OSError as error:
        raise DataError(
            f"{output} cannot be written ({error.strerror}): give the output another name or place"
        ) from None
    if there:
        if output.samefile(source):
            raise DataError(f"{output} is the input itself: give the output another name")
        if output.is_dir():
            raise DataError(f"{output} is a folder: give the name of a file")
        if not overwrite:
            raise DataError(
                f"{output} is there already: give another name, or allow overwriting (--overwrite)"
            )


def _require(part: Part, text: str, text_b: str | None, source: Path) -> None:
    """Raise DataError where a column of texts is missing; a file without rows may have none."""
    if not part.names and not part.lines:
        return
    for option, name in (("column", text), ("column-b", text_b)):
        if name is not None and name not in part.names:
            raise DataError(
                f"{source}: there is no column '{name}'{nearest(name, part.names)}; found: "
                f"{', '.join(part.names)}. Give the column's name (--{option})"
            )


def _texts(
    part: Part, text: str, text_b: str | None, source: Path
) -> tuple[list[str], list[str] | None]:
    """Return the texts of a part, checked; a missing one is an empty one."""
    unit = "row" if ending(source) == ".parquet" else "line"
    names = [text] if text_b is None else [text, text_b]
    if not part.lines:
        return [], None if text_b is None else []
    try:
        values = {name: part.values(name) for name in names}
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}, rows {part.lines[0]} to {part.lines[-1]}: a text is not UTF-8 ({error}): "
            "write the file again"
        ) from None
    if isinstance(part.rows, list):
        for line, row in zip(part.lines, part.rows, strict=True):
            missing = next((name for name in names if name not in row), None)
            if missing is not None:
                raise DataError(f"{source}, line {line}: there is no key '{missing}': add it")
    rows = checked(values, Columns(text, text_b), part.lines, f"{source}, {unit}")
    return rows.texts, rows.texts_b


def _names(
    labels: Sequence[str], probabilities: bool, taken: Sequence[str], source: Path
) -> dict[str, str]:
    """Return the added columns' names: `label`, `score`, each label's → as they are written."""
    wanted = ["label", "score", *(f"score_{label}" for label in labels if probabilities)]
    names = {name: f"predicted_{name}" if name in taken else name for name in wanted}
    # Two of the added columns meet where a label's name begins with "predicted_": refused, too.
    for name in names.values():
        if name in taken or list(names.values()).count(name) > 1:
            raise DataError(f"{source} has a column '{name}' already: rename it")
    return names


def _columns(
    labels: Sequence[str], scores: Floats, names: Mapping[str, str], part: Part, source: Path
) -> dict[str, Column]:
    """Return the added columns of a part, under their names."""
    clash = next((name for name in names.values() if name in part.names), None)
    if clash is not None:
        # Only JSON lines: the first part had no such key.
        raise DataError(
            f"{source}, line {part.lines[0]} or later: the key '{clash}' is that of an added "
            "column: rename it, or write it in the first line too"
        )
    best = scores.argmax(axis=-1)
    columns: dict[str, Column] = {
        names["label"]: [labels[at] for at in best.tolist()],
        names["score"]: scores.max(axis=-1, initial=0.0),
    }
    for at, label in enumerate(labels):
        if f"score_{label}" in names:
            columns[names[f"score_{label}"]] = scores[:, at]
    return columns
