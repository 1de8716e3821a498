"""The compiled tokenizer gives what `tokenizers` gives, or hands the text back."""

from __future__ import annotations

import importlib
import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fuzz_tokenizer import Strings, read_texts, variants
from fuzz_tokenizer import compare as outcome_of
from places import REPOSITORY
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bert_kd.config import VocabularyConfig
from bert_kd.data.batches import encode
from bert_kd.runtime.digests import checksum
from bert_kd.runtime.native.fold import fold
from bert_kd.runtime.native.tokenizer import (
    UnsupportedTokenizer,
    compare,
    compile_tokenizer,
    kept_rules,
)
from bert_kd.student.vocabulary import build_tokenizer

_native = pytest.importorskip("bert_kd.runtime.native._native")

KINDS = ["wordpiece", "cased", "words", "bpe"]
CHINESE = ["今天天气很好，我们去公园吧。", "這部電影真的很好看！", "Windows 10系统更新了"] * 5
LIMIT = 1 << 20  # bytes of the longest text that is answered natively


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real texts: English, some French and Chinese."""
    real = read_texts(REPOSITORY / "data/helpdesk/train.tsv")[:1500]
    return [*real, *CHINESE, "Le café “Été” n'est pas fermé", "naïve façade – don’t"]


@pytest.fixture(scope="session")
def states(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of a `tokenizer.json` of each kind."""
    folder = tmp_path_factory.mktemp("teacher")
    made = {}
    for kind in KINDS:
        teacher = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
        teacher.normalizer = normalizers.BertNormalizer(lowercase=kind != "cased")
        teacher.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(special_tokens=special, vocab_size=1500)
        teacher.train_from_iterator(texts, trainer)
        teacher.save(str(folder / "tokenizer.json"))
        config = VocabularyConfig(kind="wordpiece" if kind == "cased" else kind, size=1200)
        made[kind] = build_tokenizer(config, texts, folder / "tokenizer.json").to_str()
    return made


def answers(state: str, *texts: str) -> list[list[int] | None]:
    """Return the compiled tokenizer's ids of each text, None where it is handed back."""
    ids, offsets, others = compile_tokenizer(state).encode(texts)
    cuts = np.split(ids, offsets[1:-1])
    return [None if row in others else cut.tolist() for row, cut in enumerate(cuts)]


def expected(state: str, *texts: str) -> list[list[int]]:
    tokens = encode(Tokenizer.from_str(state), texts)
    return [cut.tolist() for cut in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_strings_of_all_kinds_get_the_ids_that_tokenizers_gives(
    kind: str, states: dict[str, str], texts: list[str]
):
    strings = Strings(texts, seed=3)
    for name, make in strings.kinds().items():
        batch = [make() for _ in range(250 if name != "long" else 25)]
        for state in variants(states[kind]):
            outcome = outcome_of(state, batch)
            assert not outcome.differing, (name, outcome.differing[0])
            if name in ("real", "emoji", "controls"):
                assert outcome.native > 0.95 * outcome.strings, name


@pytest.mark.parametrize("kind", KINDS)
def test_common_writing_is_answered_natively(kind: str, states: dict[str, str]):
    common = [
        "do n't do it , it 's n't", "I DON'T, she’d; they`ll", "‘‘quoted'' “text” ``or'' „so“",
        "", " ", "\0\x07", "Ünïcödé Straße ŒUVRE", "中文，没有空格。ab中cd", "한국어 텍스트",
        "ＡＢ①½", "x" * 200,
        "Привет, мир! Ёлка", "नमस्ते दुनिया", "مرحبا", "a\u00a0b\u3000c\td\r\ne\u2028f", "…—–•€",
        "👩\u200d👩\u200d👧 🇩🇪", "\ufffdx\ufeffy", "don't²", "it  's", "a\n's b\u3000n’T",
        "'s", "s'll", "n't", "an't n'ts", "can't've", "O'Re", "rock ' n ' roll", "_'s", "é n't",
    ]  # fmt: skip
    assert answers(states[kind], *common) == expected(states[kind], *common)


@pytest.mark.parametrize("kind", KINDS)
def test_the_doubtful_is_handed_back(kind: str, states: dict[str, str]):
    young, long_s, unpaired = "\U0001fae8", "that 'ſ", "\ud800"
    doubtful = [young, long_s, unpaired, f"a{unpaired}", "a" * (LIMIT + 1)]
    assert answers(states[kind], *doubtful, "a") == [
        *[None] * len(doubtful),
        *expected(states[kind], "a"),
    ]


def test_what_is_no_string_is_handed_back(states: dict[str, str]):
    ids, offsets, others = compile_tokenizer(states["words"]).encode(["a", None, b"a", 3, "a"])  # type: ignore[list-item]
    assert others == [1, 2, 3] and offsets.tolist() == [0, 1, 1, 1, 1, 2] and ids[0] == ids[1]
    with pytest.raises(TypeError):
        compile_tokenizer(states["words"]).encode(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts(kind: str, states: dict[str, str], texts: list[str]):
    tokenizer = Tokenizer.from_str(states[kind])
    long = [" ".join(texts)[:100_000], "中" * 40_000, "a" * 100_000, " " * 100_000, "'" * 100_000,
            "é n't" * 20_000, "nn't" * 25_000]  # fmt: skip
    for direction in ("right", "left", None):
        if direction:
            tokenizer.enable_truncation(300, direction=direction)
        else:
            tokenizer.no_truncation()
        assert answers(tokenizer.to_str(), *long) == expected(tokenizer.to_str(), *long)


def test_added_tokens_are_found_as_they_are_written(states: dict[str, str]):
    for kind in KINDS:
        tokenizer = Tokenizer.from_str(states[kind])
        tokenizer.add_special_tokens(["[MASK]", "[MASK]]", "]x", "é"])
        found = ["a [MASK] b", "[MASK][MASK]]]x", "[mask]", "it [MASK]'s", "é e é's", "[UNK] [PAD]"]
        assert answers(tokenizer.to_str(), *found) == expected(tokenizer.to_str(), *found)


def test_threads_share_a_tokenizer_and_a_thread_several(states: dict[str, str], texts: list[str]):
    compiled = {kind: compile_tokenizer(state) for kind, state in states.items()}
    wanted = {kind: encode(Tokenizer.from_str(state), texts) for kind, state in states.items()}

    def work(number: int) -> None:
        for turn in range(len(KINDS)):
            kind = KINDS[(number + turn) % len(KINDS)]
            ids, offsets, others = compiled[kind].encode(texts, threads=1 + number % 3)
            assert not others
            np.testing.assert_array_equal(ids, wanted[kind].ids)
            np.testing.assert_array_equal(offsets, wanted[kind].offsets)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(16)]:
            done.result()


def test_the_size_is_what_tokenizers_counts(states: dict[str, str]):
    for state in states.values():
        for variant in variants(state):
            assert compile_tokenizer(variant).size == Tokenizer.from_str(variant).get_vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_rules_in_the_models_file_are_those_of_the_json(
    kind: str, states: dict[str, str], texts: list[str], tmp_path: Path
):
    shape = {"vocabulary": 1, "hidden": 1, "layers": 1, "pooling": "max"}
    hidden = {f"weight_{part}_l0": np.zeros((4, 1), np.float32) for part in ("ih", "hh")}
    hidden |= {f"bias_{part}_l0": np.zeros(4, np.float32) for part in ("ih", "hh")}
    weights = {f"layers.0.{side}.{name}": values for side in ("rightward", "leftward")
               for name, values in hidden.items()}  # fmt: skip
    weights |= {"embedding.weight": np.zeros((1, 1), np.float32)}
    weights |= {"output.weight": np.zeros((2, 2), np.float32), "output.bias": np.zeros(2, "f4")}
    for number, state in enumerate(variants(states[kind])):
        source = tmp_path / "tokenizer.json"
        source.write_text(state, encoding="utf-8")
        path = tmp_path / f"{number}.safetensors"
        fold(weights, shape, ["a", "b"], path, "fp32", tokenizer=source)
        rules = kept_rules(_native.TensorFile(str(path)), checksum(source))
        assert rules is not None
        assert not compare(rules.compiled(), Tokenizer.from_str(state), texts).differing
        assert rules.compiled().size == Tokenizer.from_str(state).get_vocab_size()
        assert kept_rules(_native.TensorFile(str(path)), "0" * 32) is None


CHANGES = [
    # where in the file, what stands there instead, a word of the reason
    (("version",), "2.0", "version"),
    (("padding",), {"strategy": "BatchLongest"}, "padding"),
    (("post_processor",), {"type": "BertProcessing"}, "post_processor"),
    (("normalizer",), None, "damaged"),
    (("normalizer", "type"), "NFC", "normalizer"),
    (("normalizer", "normalizers", 0, "content"), "''", "normalizer"),
    (("normalizer", "normalizers", 2, "pattern", "Regex"), r"(?<=\w)\s+", "normalizer"),
    (("normalizer", "normalizers", 3, "clean_text"), False, "normalizer"),
    (("normalizer", "normalizers", 3, "lowercase"), 1, "true or false"),
    (("pre_tokenizer",), {"type": "Whitespace"}, "pre_tokenizer"),
    (("model", "type"), "Unigram", "Unigram"),
    (("model", "unk_token"), "<unk>", "model"),
    (("model", "vocab"), ["a"], "damaged"),
    (("model", "vocab"), {"[PAD]": 0, "[UNK]": 2}, "leave"),
    (("model", "vocab"), {"[PAD]": 0, "[UNK]": True}, "number"),
    (("model", "vocab"), {"[PAD]": 0, "a": 1}, "UNK"),
    (("model", "vocab"), {"": 0, "[UNK]": 1}, "empty"),
    (("model", "vocab"), {"\ud800": 0, "[UNK]": 1}, "damaged"),
    (("model", "vocab"), {"a\0b": 0, "[UNK]": 1}, "NUL"),
    (("truncation", "stride"), 3, "truncation"),
    (("truncation", "strategy"), "OnlySecond", "truncation"),
    (("truncation", "max_length"), 0, "number"),
    (("truncation", "max_length"), 2**70, "number"),
    (("truncation", "direction"), "Both", "Both"),
    (("added_tokens",), [{"content": "x", "id": -1}], "number"),
    (("added_tokens",), {}, None),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("place", "value", "reason"), CHANGES)
def test_another_tokenizer_is_refused_with_the_reason(
    kind: str, place: tuple[str | int, ...], value: object, reason: str | None,
    states: dict[str, str],
):  # fmt: skip
    state = json.loads(states[kind])
    inner = state
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    if place[-1] == "vocab" and kind == "bpe":
        state["model"]["merges"] = []
    if reason is None:
        compile_tokenizer(json.dumps(state))
        return
    with pytest.raises(UnsupportedTokenizer, match=reason):
        compile_tokenizer(json.dumps(state))


def test_merges_and_added_tokens_that_do_not_fit_are_refused(states: dict[str, str]):
    for merges in (["a"], [["a", "b"]], [["t", "##\u1234"]], 3, [["t", "##h"]] * 2):
        state = json.loads(states["bpe"])
        state["model"]["merges"] = merges
        with pytest.raises(UnsupportedTokenizer):
            compile_tokenizer(json.dumps(state))
    for change in ({"lstrip": True}, {"normalized": True}, {"id": 7}, {"content": ""}):
        state = json.loads(states["words"])
        state["added_tokens"][0].update(change)
        with pytest.raises(UnsupportedTokenizer):
            compile_tokenizer(json.dumps(state))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(text: str):
    with pytest.raises(UnsupportedTokenizer):
        compile_tokenizer(text)


def triples(*ids: int) -> bytes:
    return np.array(ids, "<i4").tobytes()


def test_the_compiled_part_checks_what_it_is_given():
    arguments = dict(
        kind="bpe", pieces=b"[UNK]\0a\0##b\0ab\0", unknown=0, merges=triples(1, 2, 3),
        added=[("[M]", 9)], chinese=True, strip_accents=True, lowercase=True, longest_word=0,
        max_tokens=0, keep_end=False,
    )  # fmt: skip
    assert _native.Tokenizer(**arguments).encode(["ab[M]abb"])[0].tolist() == [3, 9, 3, 2]
    for wrong in (
        {"kind": "unigram"}, {"unknown": 4}, {"unknown": -1}, {"merges": triples(1, 2, 4)},
        {"merges": triples(-1, 2, 3)}, {"merges": triples(1, 2, 3)[:-1]},
        {"added": [("", 1)]}, {"added": [("x", -1)]}, {"added": [("x", 2**31 - 1)]},
        {"pieces": b""}, {"pieces": b"[UNK]\0\0a\0b\0"}, {"pieces": b"[UNK]\0a\0b\0ab"},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            _native.Tokenizer(**{**arguments, **wrong})


def test_the_tables_are_what_the_installed_tokenizers_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(REPOSITORY / "bert_kd/runtime/native/src")
    maker = importlib.import_module("make_unicode_tables")
    if unicodedata.unidata_version != maker.UNICODE:
        pytest.skip("another version of Unicode tells which code points are old")
    assert maker.render(maker.probe()) == maker.TABLES.read_text(encoding="utf-8")
