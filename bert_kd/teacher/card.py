"""What `teacher.json` says of a teacher, and what tells one teacher from another on disk.

Not here: the model itself (`model.py`), so that stages which find all answers cached load neither
torch nor transformers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bert_kd.errors import StageError
from bert_kd.store import fingerprint, fingerprint_files, read_json

Pooling = Literal["cls", "mean"]

CARD = "teacher.json"
TRIED = "tried"
"""In it: whether this teacher was tried and not trained in full (`trial.py`)."""
TOKENIZER_FILES = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "spiece",
    "sentencepiece",
)
"""How the names of files begin that shape the token ids."""
NOT_THE_MODEL = {
    *("_name_or_path", "name_or_path", "tokenizer_file", "is_local", "local_files_only"),
    *("transformers_version", "id2label", "label2id"),
}
"""Keys of the JSON files that say where a model came from, not what it answers."""


@dataclass(frozen=True)
class Card:
    """What `teacher.json` must say for a teacher to be opened, beside facts of its training."""

    labels: tuple[str, ...]
    pair: bool
    max_length: int
    head_units: int = 0
    column_order: tuple[int, ...] | None = None
    pooling: Pooling = "cls"


def was_tried(folder: Path) -> bool:
    """Whether the teacher in this folder, if there is one, was tried and not trained in full."""
    return (folder / CARD).exists() and bool(read_json(folder / CARD).get(TRIED))


def read_card(folder: Path) -> Card:
    """Return what `teacher.json` says. Raises StageError where there is no teacher."""
    if not (folder / CARD).exists():
        raise StageError(f"there is no teacher in {folder}: run train-teacher first")
    found = read_json(folder / CARD)
    order = found["column_order"]
    return Card(
        labels=tuple(found["labels"]),
        pair=bool(found["pair"]),
        max_length=int(found["max_length"]),
        head_units=int(found["head_units"]),
        column_order=None if order is None else tuple(order),
        pooling=found.get("pooling", "cls"),  # folders of before it was a choice do not say
    )


def fingerprint_teacher(folder: Path, precision: str) -> str:
    """Return 16 hexadecimal digits over all that shapes the answers of the teacher in `folder`.

    Covers weights, architecture, tokenizer (with its pair template), maximum length, pair or not,
    label order, pooling and `precision`; not where the folder lies, when it was written, or what
    its training was like.
    """
    card = asdict(read_card(folder))
    if card["pooling"] == "cls":  # as ever: caches of before it was a choice are still found
        del card["pooling"]
    weights = sorted(folder.glob("*.safetensors"))
    tokenizer: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(TOKENIZER_FILES):
            is_config = file.name == "tokenizer_config.json"
            tokenizer[file.name] = _model_keys(file) if is_config else fingerprint_files([file])
    return fingerprint(
        card,
        fingerprint_files(weights),
        _model_keys(folder / "config.json"),
        tokenizer,
        precision,
    )


def _model_keys(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if key not in NOT_THE_MODEL}
