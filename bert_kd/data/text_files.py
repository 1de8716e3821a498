"""CSV, TSV and JSON lines, plain or gzipped, as batches of raw rows.

In TSV a quotation mark is only a character and a tab always ends a column (the shape of SST-2 and
GLUE). CSV follows RFC 4180: quoted fields may hold the delimiter and line breaks. All are UTF-8,
with or without a byte order mark. Lines end at a line feed (with a carriage return before it or
not); no other character ends one in TSV and JSON lines.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from bert_kd.data.tables import (
    BATCH_ROWS,
    Columns,
    RawRows,
    checked,
    listed,
    reading,
    require_columns,
    require_different,
)
from bert_kd.errors import DataError, nearest

LONGEST_FIELD = 10_000_000
"""Characters of a CSV field; a longer one is taken for a quotation mark that nothing closes."""

_SPACE_AND_QUOTE = re.compile(' +"')
MOST_LATE_QUOTES = 20
"""Records of a file in which a space before a quotation mark is looked into."""

Record = tuple[int, list[str]]
"""The line at which a record starts, and its fields."""


def read_tsv(path: Path, columns: Columns, names: tuple[str, ...] | None) -> Iterator[RawRows]:
    """Yield the rows of a TSV file; `names` are the columns of one without a header line.

    Raises DataError.
    """
    with reading(path), open_text(path, newline="\n") as file:
        yield from _delimited(path, tsv_records(file), columns, names, "\t")


def read_csv(
    path: Path, columns: Columns, names: tuple[str, ...] | None, delimiter: str
) -> Iterator[RawRows]:
    """Yield the rows of a CSV file; `names` are the columns of one without a header line.

    Raises DataError.
    """
    with reading(path), open_text(path, newline="") as file:
        yield from _delimited(path, csv_records(path, file, delimiter), columns, names, delimiter)


def read_jsonl(path: Path, columns: Columns) -> Iterator[RawRows]:
    """Yield the rows of a file with one JSON object a line; blank lines are skipped.

    Raises DataError.
    """
    require_different(columns)
    required = columns.required()
    with reading(path), open_text(path, newline="\n") as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if not line.isspace())
        while part := list(islice(numbered, BATCH_ROWS)):
            objects = [json_object(path, number, line, required) for number, line in part]
            values = {name: [row.get(name) for row in objects] for _, name in columns.wanted()}
            yield checked(values, columns, [number for number, _ in part], f"{path}, line")


def json_object(path: Path, number: int, line: str, required: list[tuple[str, str]]) -> Any:
    """Return the JSON object of a line, which has all `required` keys."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error}): every line must be one object, "
            'like {"text": "…", "label": 1}'
        ) from None
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: a JSON {type(row).__name__}, not an object: every line must "
            "be one, "
            'like {"text": "…", "label": 1}'
        )
    for setting, name in required:
        if name not in row:
            raise DataError(
                f"{path}, line {number}: there is no key '{name}'{nearest(name, row)}; found: "
                f"{listed(row)}. Add it, or set {setting} to the key's name"
            )
    return row


def tsv_records(file: TextIO) -> Iterator[Record]:
    """Yield (line, fields) of each line; a quotation mark is only a character."""
    for number, line in enumerate(file, 1):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def csv_records(path: Path, file: TextIO, delimiter: str) -> Iterator[Record]:
    """Yield (first line, fields) of each record. Raises DataError where it is no CSV."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    looked_at = 0
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}, line {start}: not CSV ({error}): a quotation mark opens a field, closes "
                "it, and is doubled inside it. Where quotation marks are only characters, use "
                "tabs and "
                'set data.format = "tsv"'
            ) from None
        late = [field for field in fields if field[:1] == " " and _SPACE_AND_QUOTE.match(field)]
        if late and looked_at < MOST_LATE_QUOTES:
            looked_at += 1
            _refuse_late_quote(path, (start, reader.line_num), late, delimiter)
        yield start, fields


def _refuse_late_quote(path: Path, place: tuple[int, int], late: list[str], delimiter: str) -> None:
    """Raise DataError where spaces stand before the quotation mark that opens a field, of a record
    in these lines (first and last) that has the fields `late`.

    A quoted text may itself begin with a space and a quotation mark: it reads the same where the
    spaces after a delimiter are skipped.
    """
    first, last = place
    with open_text(path, newline="") as again:
        lines = list(islice(again, first - 1, last))
    skipping = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        skipped = next(skipping)
    except csv.Error:
        skipped = []
    if [field for field in skipped if _SPACE_AND_QUOTE.match(field)] != late:
        raise DataError(
            f"{path}, line {first}: a field begins with a space before its quotation mark, which "
            f"would be a character of it: remove the space after the delimiter {delimiter!r}"
        )


def _delimited(
    path: Path,
    records: Iterator[Record],
    columns: Columns,
    names: tuple[str, ...] | None,
    delimiter: str,
) -> Iterator[RawRows]:
    """Yield records as rows.

    A blank line is skipped, unless there is but one column: it is an empty text then.
    """
    if names is None:
        names = _header(path, records, columns, delimiter)
    else:
        require_columns("data.columns", names, columns)
        records = _headerless(path, records, names)
    picked = [(name, names.index(name)) for _, name in columns.wanted() if name in names]
    rows = even_records(path, records, names, delimiter)
    while part := list(islice(rows, BATCH_ROWS)):
        values = {name: [fields[at] for _, fields in part] for name, at in picked}
        yield checked(values, columns, [line for line, _ in part], f"{path}, line")


def _header(
    path: Path, records: Iterator[Record], columns: Columns, delimiter: str
) -> tuple[str, ...]:
    """Take the header off `records` and return the columns' names."""
    line, header = next((record for record in records if record[1] not in ([], [""])), (1, []))
    if not header:
        raise DataError(f"{path} is empty: it needs a header line with the columns' names")
    names = tuple(name.strip() for name in header)
    hint = ", or give the names in data.columns where the file has no header line"
    if len(names) == 1 and any(mark in header[0] for mark in ",;\t|"):
        hint += f"; is the delimiter really {delimiter!r} (data.format, data.delimiter)?"
    if any("\r" in name for name in names):
        hint += "; do its lines end in a carriage return alone? Convert them to end in a line feed"
    require_columns(f"{path}, line {line}", names, columns, hint)
    return names


def _headerless(path: Path, records: Iterator[Record], names: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records, once the first is known to be no header."""
    for line, fields in islice(records, 1):
        if fields == list(names):
            raise DataError(f"{path}, line {line}: this is a header line: leave data.columns out")
        yield line, fields
    yield from records


def even_records(
    path: Path, records: Iterable[Record], names: tuple[str, ...], delimiter: str
) -> Iterator[Record]:
    """Yield the records with as many fields as there are names; refuse any other."""
    width = len(names)
    for line, fields in records:
        if len(fields) == width:
            yield line, fields
        elif fields in ([], [""]):
            if width == 1:
                yield line, [""]
        else:
            remedy = (
                "replace the tabs inside a text by spaces"
                if delimiter == "\t"
                else f"put a text that holds {delimiter!r} in quotation marks"
            )
            raise DataError(
                f"{path}, line {line}: {len(fields)} columns found, {width} expected "
                f"({', '.join(names)}): {remedy}"
            )


@contextmanager
def open_text(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a plain or gzipped text file.

    Raises DataError where it is not UTF-8 or a broken archive.
    """
    try:
        with (
            _open_bytes(path) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file,
        ):
            yield file
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}): fetch or pack it again"
        ) from None


def _open_bytes(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _not_utf8(path: Path) -> str:
    """Return the message that names the first line that is not UTF-8."""
    with _open_bytes(path) as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "UTF-16" if wide else "WINDOWS-1252"
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x}): convert "
                    f"the file, for example with: iconv -f {encoding} -t UTF-8"
                )
    return f"{path}: not UTF-8: convert the file"
