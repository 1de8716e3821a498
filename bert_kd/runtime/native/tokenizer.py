"""From a student's `tokenizer.json` to the compiled tokenizer, or the reason why there is none.

The compiled tokenizer does exactly what the tokenizers of `bert_kd/student/vocabulary.py` do, and
nothing else: whatever stands in the file beyond that is refused here, and `tokenizers` serves.
Reading the JSON takes longer than all else in loading a bundle, so its rules also lie in
`native.safetensors`, under the checksum of the `tokenizer.json` that they were read from. Not here:
the work itself (`src/normalizer.cpp`, `src/tokenizer.cpp`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_kd.runtime.engine import UNKNOWN

if TYPE_CHECKING:
    import tokenizers

    from bert_kd.runtime.native._native import TensorFile, Tokenizer

METADATA, PIECES, MERGES = "tokenizer", "tokenizer.pieces", "tokenizer.merges"
"""The parts of `Rules` in `native.safetensors`."""
PREFIX = "##"


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Removed",
        "invert": True,
    }


# The components that src/ has by hand, as they stand in the file; a pattern that changes by one
# character is another component.
UNIFY = [
    _replace("[‘’`´]{2}|''|[“”„]", '"'),
    _replace("[‘’`´]", "'"),
    _replace(r"(?i)(?<=\w)\s+(?=(?:n't|'(?:s|re|ve|ll|d|m))\b)", ""),
]
WORDS = _split(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+?(?=n't\b)|\w+|[^\w\s]")
RUNS = _split(
    r"\p{Han}+|n't\b|'(?:s|re|ve|ll|d|m)\b|[\w&&[^\p{Han}]]+?(?=n't\b)|[\w&&[^\p{Han}]]+|[^\w\s]"
)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # kind, pre-tokenizer, and what the model says beside its vocabulary
    "WordPiece": (
        "wordpiece",
        {"type": "BertPreTokenizer"},
        {"unk_token": UNKNOWN, "continuing_subword_prefix": PREFIX},
    ),
    "WordLevel": ("words", WORDS, {"unk_token": UNKNOWN}),
    "BPE": (
        "bpe",
        RUNS,
        {
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": PREFIX,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
        },
    ),
}


class UnsupportedTokenizer(ValueError):
    """A tokenizer that the compiled one does not do; its text is the reason."""


@dataclass(frozen=True)
class Rules:
    """What the compiled tokenizer is made of."""

    pieces: bytes
    """The vocabulary in the order of its ids, each entry as UTF-8 with a NUL behind it."""
    merges: bytes
    """(left, right, merged) ids as int32, lowest byte first; the first merge to be done first."""
    options: Mapping[str, Any]
    """The other arguments of `_native.Tokenizer`, all of which JSON can hold."""

    def compiled(self) -> Tokenizer:
        """Return the compiled tokenizer. Raises ValueError or TypeError where they make none."""
        from bert_kd.runtime.native import _native

        return _native.Tokenizer(pieces=self.pieces, merges=self.merges, **self.options)


def compile_tokenizer(text: str) -> Tokenizer:
    """Return the compiled tokenizer of a `tokenizer.json` whose text this is.

    Raises UnsupportedTokenizer where it is another than the students have, or damaged.
    """
    rules = read_rules(text)
    try:
        return rules.compiled()
    except (ValueError, TypeError) as error:
        raise UnsupportedTokenizer(f"it is damaged ({error})") from None


def read_rules(text: str) -> Rules:
    """Return the rules of a `tokenizer.json` whose text this is.

    Raises UnsupportedTokenizer where it is another than the students have, or damaged.
    """
    try:
        return _rules(json.loads(text))
    except UnsupportedTokenizer:
        raise
    except KeyError as error:
        raise UnsupportedTokenizer(f"it has no {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UnsupportedTokenizer(f"it is damaged ({error})") from None


def kept_rules(file: TensorFile, source: str) -> Rules | None:
    """Return the rules that `native.safetensors` holds of the `tokenizer.json` of the checksum
    `source`; None where it holds none, or another's.

    Raises ValueError, TypeError or RuntimeError where they are damaged.
    """
    found = file.metadata.get(METADATA)
    if found is None:
        return None
    options = json.loads(found)
    if not isinstance(options, dict):
        raise TypeError(f"its {METADATA} is {_shortened(options)}")
    if options.pop("source", None) != source:
        return None
    return Rules(file.read_bytes(PIECES), file.read_bytes(MERGES), options)


@dataclass(frozen=True)
class Comparison:
    """What the compiled tokenizer made of some texts."""

    differing: list[int]
    """Positions of those that it gives other ids than `tokenizers` does."""
    handed_back: list[int]
    """Positions of those that it leaves to `tokenizers`."""


def compare(
    compiled: Tokenizer, usual: tokenizers.Tokenizer, texts: Sequence[str], threads: int = 1
) -> Comparison:
    """Return where the compiled tokenizer's ids of `texts` are not those of `usual`."""
    # Deferred: answering needs none of it.
    from bert_kd.data.batches import encode

    expected = encode(usual, texts)
    ids, offsets, others = compiled.encode(texts, threads)
    back = set(others)
    differing = [
        row
        for row in range(len(texts))
        if row not in back
        and not np.array_equal(
            ids[offsets[row] : offsets[row + 1]],
            expected.ids[expected.offsets[row] : expected.offsets[row + 1]],
        )
    ]
    return Comparison(differing, others)


def _rules(state: Mapping[str, Any]) -> Rules:
    _expect("version", state["version"], "1.0")
    _expect("padding", state["padding"], None)
    _expect("post_processor", state["post_processor"], None)
    model = state["model"]
    if model["type"] not in MODELS:
        raise UnsupportedTokenizer(f"its model is {model['type']}")
    kind, pre_tokenizer, options = MODELS[model["type"]]
    _expect("pre_tokenizer", state["pre_tokenizer"], pre_tokenizer)

    variable = {"type", "vocab", "merges" if kind == "bpe" else "", "max_input_chars_per_word"}
    if kind != "wordpiece":
        variable.discard("max_input_chars_per_word")
    _expect("model", {name: model[name] for name in model if name not in variable}, options)
    vocabulary = _vocabulary(model["vocab"])
    merges = _merges(model["merges"], vocabulary) if kind == "bpe" else []
    options = {
        "kind": kind,
        "unknown": vocabulary[UNKNOWN],
        "added": _added(state["added_tokens"], vocabulary),
        "longest_word": _number(model["max_input_chars_per_word"]) if kind == "wordpiece" else 0,
        **_normalizer(state["normalizer"]),
        **_truncation(state["truncation"]),
    }
    return Rules(_pieces(vocabulary), np.array(merges, dtype="<i4").tobytes(), options)


def _expect(name: str, found: object, expected: object) -> None:
    # As text: to Python, True is 1.
    if json.dumps(found, sort_keys=True) != json.dumps(expected, sort_keys=True):
        raise UnsupportedTokenizer(f"its {name} is {_shortened(found)}")


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _number(value: object, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise UnsupportedTokenizer(f"it says {_shortened(value)} where a number should stand")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise UnsupportedTokenizer(f"it says {_shortened(value)} where true or false should stand")
    return value


def _vocabulary(found: Mapping[str, Any]) -> dict[str, int]:
    """Return the vocabulary in the order of its ids, which count from 0."""
    numbers = list(found.values())
    if not {type(number) for number in numbers} <= {int}:
        raise UnsupportedTokenizer("its vocabulary has ids that are no numbers")
    if sorted(numbers) != list(range(len(numbers))):
        raise UnsupportedTokenizer("its ids leave some numbers out")
    return dict(sorted(found.items(), key=itemgetter(1)))


def _pieces(vocabulary: Mapping[str, int]) -> bytes:
    joined = "".join([f"{piece}\0" for piece in vocabulary])
    if joined.count("\0") > len(vocabulary):
        raise UnsupportedTokenizer("its vocabulary has an entry with a NUL")
    return joined.encode()


def _merges(found: list[Any], vocabulary: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """Return (left, right, merged) ids, the first to be done first."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in found]
    if not all(right.startswith(PREFIX) for _, right in pairs):
        raise UnsupportedTokenizer("it merges what continues nothing")
    if len({(left, right) for left, right in pairs}) != len(pairs):
        raise UnsupportedTokenizer("it has two merges of one pair")
    cut = len(PREFIX)
    return [
        (vocabulary[left], vocabulary[right], vocabulary[left + right[cut:]])
        for left, right in pairs
    ]


def _added(found: list[Any], vocabulary: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the texts and ids of tokens that are found in a text as it is written."""
    added = []
    for token in found:
        text, index = token["content"], _number(token["id"])
        flags = [token[name] for name in ("single_word", "lstrip", "rstrip", "normalized")]
        _expect(f"added token {text!r}", flags, [False] * len(flags))
        _expect(f"id of {text!r}", index, vocabulary.get(text, index))
        added.append((text, index))
    if len({text for text, _ in added}) != len(added):
        raise UnsupportedTokenizer("it has an added token twice")
    return added


def _normalizer(found: Mapping[str, Any]) -> dict[str, bool]:
    """Return the options of the BERT normaliser behind those that unify English."""
    _expect("normalizer", found["type"], "Sequence")
    *unify, bert = found["normalizers"]
    _expect("normalizer", unify, UNIFY)
    lowercase, strip_accents = _flag(bert["lowercase"]), bert["strip_accents"]
    expected = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": _flag(bert["handle_chinese_chars"]),
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    _expect("normalizer", bert, expected)
    return {
        "chinese": expected["handle_chinese_chars"],
        "strip_accents": lowercase if strip_accents is None else _flag(strip_accents),
        "lowercase": lowercase,
    }


def _truncation(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how many tokens of a text are kept (0: all), and whether those at its end."""
    if found is None:
        return {"max_tokens": 0, "keep_end": False}
    directions = {"Right": False, "Left": True}
    if found["direction"] not in directions:
        raise UnsupportedTokenizer(f"it truncates to the {_shortened(found['direction'])}")
    _expect("truncation", [found["strategy"], found["stride"]], ["LongestFirst", 0])
    return {
        "max_tokens": _number(found["max_length"], least=1),
        "keep_end": directions[found["direction"]],
    }
