"""From a student's `tokenizer.json` to the compiled tokenizer, or the reason why there is none.

The compiled tokenizer does exactly what the tokenizers of `bert_kd/student/vocabulary.py` do, and
nothing else: whatever stands in the file beyond that is refused here, and `tokenizers` serves. Not
here: the work itself (`src/normalizer.cpp`, `src/tokenizer.cpp`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_kd.runtime.native._native import Tokenizer

UNKNOWN = "[UNK]"
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


def compile_tokenizer(text: str) -> Tokenizer:
    """Return the compiled tokenizer of a `tokenizer.json` whose text this is.

    Raises UnsupportedTokenizer where it is another than the students have, or damaged.
    """
    from bert_kd.runtime.native import _native

    try:
        arguments = _arguments(json.loads(text))
        return _native.Tokenizer(**arguments)
    except UnsupportedTokenizer:
        raise
    except KeyError as error:
        raise UnsupportedTokenizer(f"it has no {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UnsupportedTokenizer(f"it is damaged ({error})") from None


def _arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compiled tokenizer's arguments."""
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
    return {
        "kind": kind,
        "vocabulary": list(vocabulary),
        "unknown": vocabulary[UNKNOWN],
        "merges": _merges(model["merges"], vocabulary) if kind == "bpe" else [],
        "added": _added(state["added_tokens"], vocabulary),
        "longest_word": _number(model["max_input_chars_per_word"]) if kind == "wordpiece" else 0,
        **_normalizer(state["normalizer"]),
        **_truncation(state["truncation"]),
    }


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
