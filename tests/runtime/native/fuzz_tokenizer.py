"""Compares the compiled tokenizer with `tokenizers` on strings made to tell them apart.

The tests run a few thousand. `make fuzz` runs a million on the bundled data, with
`DATA=FOLDER` on SST-2 and THUCNews in FOLDER (`sst2/train.tsv.gz`, `thucnews/train.tsv.gz`); by
hand, from the repository:

    python tests/runtime/native/fuzz_tokenizer.py --count 1000000 --data FOLDER
        --tokenizer runs/demo/students/base/tokenizer.json

It builds a tokenizer of each kind, prints the share that is answered natively and every difference,
and ends with status 1 if there is one. Any number of files of texts (.tsv, .tsv.gz: the first
column) and of tokenizers.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bert_kd.config import VocabularyConfig
from bert_kd.runtime.native import tokenizer
from bert_kd.student.vocabulary import build_tokenizer

CHUNK = 2000
BUNDLED = Path(__file__).parents[3] / "data/helpdesk/train.tsv"
QUOTES = "'‘’`´“”„\""
SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff"
CLITICS = ["n't", "'s", "'re", "'ve", "'ll", "'d", "'m", "N'T", "'S", "'Ll", "n’t", "`s", "'t",
           "'ſ", "'se", "'s_", "n't1", "ŉ't", "n''t", "n'́t", "'d́", "'中"]  # fmt: skip
ODD = [*QUOTES, *SPACES, *CLITICS, *"ntsNTSdmrevlaA1_#.,-@[]\\", "ſ", "K", "Å", "İ", "ı", "ß", "ŉ",
       "ﬁ", "ﬆ", "ẞ", "Σ", "ς", "é", "e\u0301", "ñ", "Ǆ", "\u0301", "\u0323", "\u0345", "\u0334",
       "\u1b44", "\u302e", "\u0f73", "가", "각", "ᄀ", "ᅡ", "ᆨ", "中", "国", "々", "〇", "〡", "⺀",
       "豈", "\U0002f801", "\U00020000", "\U0002ebf0", "ア", "ｱ", "ﾞ", "ー", "。", "，", "“", "”",
       "\0", "\x07", "\x7f", "\x9f", "\xad", "\u200c", "\u200d", "\u202e", "\ufe0f", "\ufffd",
       "\uffff", "\ue000", "\U000f0000", "\U0010ffff", "😀", "👩\u200d👩\u200d👧", "🇩🇪", "🫨", "؟",
       "ا", "ّ", "ह", "्", "ก", "ำ", "\u0378", "\u0897", "[MASK]", "[UNK]", "[PAD]", "[CLS]",
       "[MASK", "##", "##s", "½", "²", "№", "…", "€", "\u1fef", "\u037e", "\u2000",
       "\u2126"]  # fmt: skip
SCRIPTS = [(0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0x370, 0x400), (0x400, 0x530),
           (0x590, 0x700), (0x900, 0xDF0), (0xE00, 0x1000), (0x1100, 0x1200), (0x1E00, 0x2000),
           (0x2000, 0x2070), (0x2E80, 0x2FE0), (0x3000, 0x3100), (0x4E00, 0xA000),
           (0xAC00, 0xD7A4), (0xF900, 0xFB00), (0xFB00, 0xFE00), (0xFE20, 0xFFF0),
           (0x1D400, 0x1D800), (0x1F300, 0x1FA00), (0x20000, 0x20100)]  # fmt: skip


class Strings:
    """Strings of one kind after another, from a seed and some real texts."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self._texts = texts or ["A real text isn't given."]
        self._random = random.Random(seed)
        everything = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
        self._all = everything
        self._old = [code for code in everything if unicodedata.category(chr(code)) != "Cn"]
        self._marks = [code for code in self._old if unicodedata.combining(chr(code))]
        self._emoji = [*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F6C0), *range(0x1F900, 0x1F9FF)]

    def kinds(self) -> dict[str, Callable[[], str]]:
        """Return what makes one string, by the kind's name."""
        return {
            "real": lambda: self._random.choice(self._texts),
            "mutated": self.mutated,
            "spliced": lambda: self.mutated()[: self._random.randint(0, 80)] + self.mutated(),
            "odd": lambda: "".join(self._random.choices(ODD, k=self._random.randint(0, 24))),
            "clitics": self.clitics,
            "all planes": lambda: self._of(self._all),
            "assigned": lambda: self._of(self._old),
            "scripts": self.scripts,
            "marks": self.marks,
            "emoji": self.emoji,
            "controls": self.controls,
            "long": self.long,
        }

    def _of(self, codes: list[int]) -> str:
        return "".join(map(chr, self._random.choices(codes, k=self._random.randint(0, 30))))

    def mutated(self) -> str:
        """A real text with some characters changed, added, removed or moved."""
        rng = self._random
        chars = list(rng.choice(self._texts))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(chars) + 1)
            match rng.randrange(8):
                case 0:
                    chars[at:at] = rng.choice(ODD)
                case 1:
                    chars[at : at + rng.randint(1, 3)] = []
                case 2:
                    chars[at : at + 1] = rng.choice(ODD)
                case 3:
                    chars[at:at] = chr(rng.choice(self._old))
                case 4:
                    chars = [rng.choice(SPACES) if c == " " and rng.random() < 0.2 else c
                             for c in chars]  # fmt: skip
                case 5:
                    chars[at : at + 9] = "".join(chars[at : at + 9]).upper()
                case 6:
                    chars[at:at] = rng.choice(SPACES) + rng.choice(CLITICS) + rng.choice(" a,_中")
                case 7:
                    chars = [rng.choice(QUOTES) if c in QUOTES else c for c in chars]
        return "".join(chars)

    def clitics(self) -> str:
        """Words, whitespace and clitics in any order."""
        rng = self._random
        pools = [["do", "is", "n", "can", "it", "中", "é", "_", ".", "'"], CLITICS, list(SPACES)]
        return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 12)))

    def scripts(self) -> str:
        """Words of several scripts."""
        rng = self._random
        words = []
        for _ in range(rng.randint(1, 12)):
            low, high = rng.choice(SCRIPTS)
            words.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 9))))
        return rng.choice(["", " ", "  ", "-"]).join(words)

    def marks(self) -> str:
        """Letters under piles of combining marks."""
        rng = self._random
        return "".join(
            chr(rng.choice(self._marks)) if rng.random() < 0.6 else rng.choice("aeiAO 가中ा")
            for _ in range(rng.randint(1, 20))
        )

    def emoji(self) -> str:
        """Emoji with joiners, variation selectors, skin tones and flags, among words."""
        rng = self._random
        around = ["\u200d", "\ufe0f", "\U0001f3fd", "🇫", "🇷", "ok", " ", "1\ufe0f\u20e3"]
        return "".join(
            chr(rng.choice(self._emoji)) if rng.random() < 0.4 else rng.choice(around)
            for _ in range(rng.randint(1, 15))
        )

    def controls(self) -> str:
        """Words with characters that no one sees."""
        rng = self._random
        unseen = [*map(chr, range(32)), *map(chr, range(127, 161)), "\xad", "\u200b", "\u2060"]
        return "".join(
            rng.choice(unseen) if rng.random() < 0.3 else rng.choice("ab N'tsS.中é")
            for _ in range(rng.randint(1, 30))
        )

    def long(self) -> str:
        """A long text, or one with a long word."""
        rng = self._random
        if rng.random() < 0.7:
            word = rng.choice(["a", "é", "中", "가", "n", "ab", "ⅳ", "s'"])
            return f"it {word * rng.randint(20, 160)} {self.mutated()}"
        parts = [self.mutated() for _ in range(rng.randint(20, 60))]
        return " ".join(parts) * rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, 20])


@dataclass
class Outcome:
    """What became of the strings of one kind."""

    strings: int = 0
    native: int = 0
    differing: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add what became of more strings."""
        self.strings += other.strings
        self.native += other.native
        self.differing += other.differing


def compare(state: str, texts: list[str], threads: int = 1) -> Outcome:
    """Return on how many of `texts` the compiled tokenizer of `state` answers, and those on which
    it differs from `tokenizers`.
    """
    found = tokenizer.compare(
        tokenizer.compile_tokenizer(state), Tokenizer.from_str(state), texts, threads
    )
    native = len(texts) - len(found.handed_back)
    return Outcome(len(texts), native, [texts[row] for row in found.differing])


def read_texts(path: Path) -> list[str]:
    """Return the first column of a file of texts, without its header."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()
    with opened as lines:
        return [line.rstrip("\n").split("\t")[0] for line in lines][1:]


def variants(state: str) -> Iterator[str]:
    """Yield a tokenizer as it is, cut short at either end, and with a mask token."""
    yield state
    tokenizer = Tokenizer.from_str(state)
    tokenizer.add_special_tokens(["[MASK]", "[MASK]s"])
    for direction in ("right", "left"):
        tokenizer.enable_truncation(7, direction=direction)
        yield tokenizer.to_str()


def build_tokenizers(texts: list[str]) -> dict[str, str]:
    """Return a `tokenizer.json` of each kind that a student can have, by the kind's name."""
    made = {}
    for kind in ("wordpiece", "cased", "words", "bpe"):
        config = VocabularyConfig(kind="wordpiece" if kind == "cased" else kind, size=8000)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            if config.kind == "wordpiece":
                train_wordpiece(texts, path, lowercase=kind == "wordpiece")
            made[kind] = build_tokenizer(config, texts, path, mask="[MASK]").to_str()
    return made


def train_wordpiece(texts: list[str], path: Path, lowercase: bool) -> None:
    """Write a WordPiece as a BERT has it, learned from `texts`."""
    teacher = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    teacher.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    teacher.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        special_tokens=special, vocab_size=12_000, show_progress=False
    )
    teacher.train_from_iterator(texts, trainer)
    teacher.save(str(path))


def fuzz(name: str, state: str, strings: Strings, count: int) -> Outcome:
    """Compare on about `count` strings of all kinds, print a line for each, and return them all."""
    kinds = strings.kinds()
    share = count // len(kinds) + 1
    all_kinds = Outcome()
    for kind, make in kinds.items():
        outcome = Outcome()
        wanted = share if kind != "long" else share // 20
        for start in range(0, wanted, CHUNK):
            batch = [make() for _ in range(min(CHUNK, wanted - start))]
            for variant in variants(state) if start == 0 else [state]:
                outcome.add(compare(variant, batch))
        tell(f"{name}\t{kind}", outcome)
        all_kinds.add(outcome)
    return all_kinds


def tell(what: str, outcome: Outcome) -> None:
    """Print a line, and the first strings that differ."""
    print(  # noqa: T201
        f"{what}\t{outcome.strings:,} strings\t"
        f"{outcome.native / max(outcome.strings, 1):.2%} native\t"
        f"{len(outcome.differing)} differ",
        flush=True,
    )
    for text in outcome.differing[:5]:
        print("   ", json.dumps(text)[:400])  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000, help="strings, in all")
    parser.add_argument("--data", type=Path, help="the folder of sst2 and thucnews")
    parser.add_argument("--texts", type=Path, action="append", default=[])
    parser.add_argument("--tokenizer", type=Path, action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    paths = arguments.texts
    if arguments.data is not None:
        paths += [arguments.data / name / "train.tsv.gz" for name in ("sst2", "thucnews")]
    texts = [text for path in paths or [BUNDLED] for text in read_texts(path)]
    sample = random.Random(arguments.seed).sample(texts, min(len(texts), 40_000))
    states = build_tokenizers(sample)
    for path in arguments.tokenizer:
        states[str(path)] = path.read_text(encoding="utf-8")
    total = Outcome()
    # A twelfth more: one kind of the twelve, the long ones, has but few strings.
    count = arguments.count * 13 // 12 // len(states)
    for name, state in states.items():
        total.add(fuzz(name, state, Strings(texts, arguments.seed), count))
    tell("all", total)
    return int(bool(total.differing))


if __name__ == "__main__":
    sys.exit(main())
