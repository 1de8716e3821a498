"""Rows as the text of source files."""

import json


def tsv(rows, header=("text", "label")):
    """Return rows as the text of a TSV file."""
    return "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows])


def jsonl(rows):
    """Return objects as the text of a JSON lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbered(count, classes=2, prefix="text"):
    """Return `count` rows of distinct texts, labels 0, 1, … in turn."""
    return [(f"{prefix} {number}", number % classes) for number in range(count)]
