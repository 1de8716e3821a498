"""The student's tokenizer: the teacher's WordPiece pruned to what occurs, whole words, or trained
byte-pair encoding.

All three are plain `tokenizers` tokenizers without special tokens around a text (a BiLSTM has no
use for them), with `[PAD]` at 0 and `[UNK]` at 1. Text is normalised so that typed and tokenised
writing meet: "don't" and "do n't", curly and straight quotes are the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bert_kd.config import VocabularyConfig
from bert_kd.errors import StudentError
from bert_kd.progress import say

PADDING, UNKNOWN = "[PAD]", "[UNK]"
SPECIAL = (PADDING, UNKNOWN)
PREFIX = "##"
TRIED_TEXTS, MOST_UNKNOWN = 2000, 0.02
"""A teacher's WordPiece knows a data set where no larger share of the tokens of so many texts is
unknown to it.
"""
HAN, HAN_RUN = re.compile("[㐀-䶿一-鿿]"), re.compile("[㐀-䶿一-鿿]+")
MOST_HAN = 0.5
"""Of letters: a larger share of Chinese characters, and each of them is a word. Of 12,000 headlines
a student learned more by its characters than by byte pairs, of which most occur a few times.
"""
ASCII = tuple(chr(code) for code in range(33, 127))

# Whitespace before a clitic, as Penn-Treebank tokenisation leaves it: "do n't", "it 's".
_BEFORE_CLITIC = r"(?i)(?<=\w)\s+(?=(?:n't|'(?:s|re|ve|ll|d|m))\b)"
# A word, a clitic or one other character: "don't" gives "do", "n't", as in most word-vector files.
_WORD = r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+?(?=n't\b)|\w+|[^\w\s]"
# The same, but a run of Chinese characters is a word apart from letters and digits beside it.
_RUN = r"\p{Han}+|" + _WORD.replace(r"\w+", r"[\w&&[^\p{Han}]]+")


def unify() -> list[normalizers.Normalizer]:
    """Return the normalisers that make typed and Penn-Treebank-tokenised English meet."""
    return [
        normalizers.Replace(Regex("[‘’`´]{2}|''|[“”„]"), '"'),
        normalizers.Replace(Regex("[‘’`´]"), "'"),
        normalizers.Replace(Regex(_BEFORE_CLITIC), ""),
    ]


def build_tokenizer(
    config: VocabularyConfig,
    texts: Iterable[str],
    teacher: Path | None = None,
    mask: str | None = None,
) -> Tokenizer:
    """Return a tokenizer for `texts`; `teacher` is the teacher's `tokenizer.json`, which
    `wordpiece` prunes. `mask`, where texts hold masked words, stays one entry.

    Raises StudentError where `wordpiece` is asked for and the teacher has none.
    """
    if config.kind == "auto":
        texts = iter(texts)
        tried = list(islice(texts, TRIED_TEXTS))
        texts = chain(tried, texts)
        config = config.model_copy(update={"kind": _kind_for(tried, teacher)})
    if config.kind == "wordpiece":
        tokenizer = _pruned_wordpiece(config, texts, _read_wordpiece(teacher))
    else:
        tokenizer = _trained(config, texts)
    if mask is not None:
        tokenizer.add_special_tokens([mask])
    if tokenizer.get_vocab_size() <= len(SPECIAL) + (mask is not None):
        raise StudentError(
            f"the vocabulary is empty: no entry occurs {config.minimum_count:,} times; lower "
            "vocabulary.minimum_count"
        )
    tokenizer.enable_truncation(config.max_length)
    return tokenizer


def model_type(tokenizer: Tokenizer) -> str:
    """Return "WordPiece", "WordLevel" or "BPE"."""
    return str(json.loads(tokenizer.to_str())["model"]["type"])


def _kind_for(texts: Sequence[str], teacher: Path | None) -> Literal["wordpiece", "words", "bpe"]:
    """Return the kind of vocabulary for these texts; say why where it is not the teacher's."""
    own: Literal["words", "bpe"] = "words" if _han_share(texts) > MOST_HAN else "bpe"
    if teacher is None or not teacher.exists():
        return own
    tokenizer = Tokenizer.from_file(str(teacher))
    kind = model_type(tokenizer)
    if kind != "WordPiece":
        say(f"the teacher's tokenizer is {kind}: the student's is made from the data")
        return own
    share = _unknown_share(tokenizer, texts)
    if share > MOST_UNKNOWN:
        say(
            f"{share:.0%} of the tokens are unknown to the teacher's WordPiece: the student's "
            "tokenizer is made from the data"
        )
        return own
    return "wordpiece"


def _han_share(texts: Sequence[str]) -> float:
    """Return the share of Chinese characters among the letters of `texts`."""
    letters = sum(character.isalpha() for text in texts for character in text)
    return sum(len(HAN.findall(text)) for text in texts) / max(letters, 1)


def _unknown_share(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return the share of the tokens of `texts` that a WordPiece tokenizer does not know."""
    unknown = tokenizer.token_to_id(json.loads(tokenizer.to_str())["model"]["unk_token"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    ids = [token for encoding in found for token in encoding.ids]
    return sum(token == unknown for token in ids) / max(len(ids), 1)


def _read_wordpiece(path: Path | None) -> Tokenizer:
    remedy = 'set vocabulary.kind = "words" or "bpe"'
    if path is None or not path.exists():
        raise StudentError(
            f"the teacher's tokenizer.json is not there ({path}), so its WordPiece cannot be "
            f"pruned: {remedy}"
        )
    tokenizer = Tokenizer.from_file(str(path))
    kind = model_type(tokenizer)
    if kind != "WordPiece":
        raise StudentError(f"the teacher's tokenizer is {kind}, not WordPiece: {remedy}")
    return tokenizer


def _pruned_wordpiece(config: VocabularyConfig, texts: Iterable[str], full: Tokenizer) -> Tokenizer:
    """Return the teacher's WordPiece with the pieces that occur, most frequent first, single
    characters, and others as far as there is room.
    """
    given = full.normalizer
    full.normalizer = normalizers.Sequence([*unify(), *([given] if given else [])])
    full.no_truncation()
    full.no_padding()
    full.post_processor = None

    known = full.get_vocab()
    by_id: Counter[int] = Counter()  # of ids, as the fast encoding leaves the pieces out
    for chunk in _chunks(texts):
        for encoding in full.encode_batch_fast(chunk, add_special_tokens=False):
            by_id.update(encoding.ids)
    counts = Counter({piece: by_id[index] for piece, index in known.items() if by_id[index]})
    specials = {token for token in known if token.startswith("[") and token.endswith("]")}
    occurring = [
        piece
        for piece, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= config.minimum_count and piece not in specials
    ]
    # With every character at hand, a word that was never seen is spelled rather than lost.
    characters = {char for piece in occurring for char in piece.removeprefix(PREFIX)} | set(ASCII)
    spelled = [
        piece
        for char in sorted(characters)
        for piece in (char, PREFIX + char)
        if piece in known and piece not in specials
    ]
    if config.fill:  # BERT's vocabulary stands about by falling frequency in its own texts
        usual = sorted(known, key=lambda piece: known[piece])
        occurring += [piece for piece in usual if _is_part_of_words(piece) and not counts[piece]]
    room = max(config.size - len(SPECIAL) - len(spelled), 0)
    kept = [piece for piece in occurring if piece not in set(spelled)][:room]
    # By falling frequency, so that what is looked up most lies together in memory.
    pieces = sorted(kept + spelled, key=lambda piece: (-counts[piece], piece))

    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *pieces])}
    longest = json.loads(full.to_str())["model"]["max_input_chars_per_word"]
    pruned = Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=longest)
    )
    pruned.normalizer = full.normalizer
    pruned.pre_tokenizer = full.pre_tokenizer
    return pruned


def _is_part_of_words(piece: str) -> bool:
    """Whether a piece is more than one character of some word: no character, no special entry."""
    return len(piece.removeprefix(PREFIX)) > 1 and not (piece.startswith("[") and piece[-1] == "]")


def _trained(config: VocabularyConfig, texts: Iterable[str]) -> Tokenizer:
    """Return a word-level or BPE tokenizer trained on `texts`.

    Chinese is cut into characters by `words`, as vectors of characters have them; `bpe` learns
    words of several characters within a run of them.
    """
    special = list(SPECIAL)
    if config.kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        trainer: trainers.Trainer = trainers.WordLevelTrainer(
            vocab_size=config.size,
            min_frequency=config.minimum_count,
            special_tokens=special,
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, continuing_subword_prefix=PREFIX))
        trainer = trainers.BpeTrainer(
            vocab_size=config.size,
            min_frequency=config.minimum_count,
            special_tokens=special,
            continuing_subword_prefix=PREFIX,
            show_progress=False,
        )
    words = config.kind == "words"
    bert = normalizers.BertNormalizer(
        lowercase=True, strip_accents=False, handle_chinese_chars=words
    )
    tokenizer.normalizer = normalizers.Sequence([*unify(), bert])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(_WORD if words else _RUN), behavior="removed", invert=True
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer if words else _with_all_characters(tokenizer)


def _with_all_characters(tokenizer: Tokenizer) -> Tokenizer:
    """Return a BPE in which every character that it knows has an entry at the start of a word and
    one within: of thousands of Chinese characters, many were seen in one of these places alone.
    """
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    pieces = {piece.removeprefix(PREFIX) for piece in vocabulary}
    characters = sorted(piece for piece in pieces if re.fullmatch(r"\w", piece))
    for piece in (form for char in characters for form in (char, PREFIX + char)):
        vocabulary.setdefault(piece, len(vocabulary))
    return Tokenizer.from_str(json.dumps(state))


def _chunks(texts: Iterable[str], size: int = 4096) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, size)):
        yield chunk
