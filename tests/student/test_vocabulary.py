"""Tokenizers: what is kept, what meets, what is spelled."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from bert_kd.config import VocabularyConfig
from bert_kd.data.batches import encode
from bert_kd.errors import StudentError
from bert_kd.student.vocabulary import build_tokenizer, model_type

TEXTS = ["The film is very good", "it is not wonderful", "a film, don't", "unly good"]
KINDS = ["wordpiece", "words", "bpe"]


def build(kind: str, teacher: Path | None, **settings) -> Tokenizer:
    config = VocabularyConfig(kind=kind, **{"fill": False, **settings})
    return build_tokenizer(config, TEXTS, teacher / "tokenizer.json" if teacher else None)


@pytest.mark.parametrize("kind", KINDS)
def test_typed_and_tokenised_writing_meet(kind: str, teacher_folder: Path):
    tokenizer = build(kind, teacher_folder)
    for typed, tokenised in [
        ("I don't", "i do n't"),
        ("It’s good", "it 's good"),
        ("can't", "ca n't"),
        ("“good”", "`` good ''"),
        ("GOOD", "good"),
    ]:
        assert tokenizer.encode(typed).tokens == tokenizer.encode(tokenised).tokens, typed


def test_words_are_cut_as_word_vector_files_have_them():
    tokenizer = build_tokenizer(
        VocabularyConfig(kind="words"), ["i don't , can't it's a-b c_d 3.5"]
    )
    assert tokenizer.encode("I don't, can't it's").tokens == [
        "i", "do", "n't", ",", "ca", "n't", "it", "'s",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_unknown_come_first_and_no_special_token_is_added(
    kind: str, teacher_folder: Path
):
    tokenizer = build(kind, teacher_folder)
    assert tokenizer.id_to_token(0) == "[PAD]" and tokenizer.id_to_token(1) == "[UNK]"
    found = tokenizer.encode("the film is good").ids
    assert len(found) == 4 and min(found) > 1


def test_pruned_wordpiece_cuts_seen_texts_as_the_teacher_does(teacher_folder: Path):
    teacher = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    teacher.no_padding()
    pruned = build("wordpiece", teacher_folder)
    for text in TEXTS:
        expected = teacher.encode(text, add_special_tokens=False).tokens
        assert pruned.encode(text).tokens == expected
    assert pruned.token_to_id("zebra") is None  # never occurs
    assert pruned.token_to_id("[CLS]") is None
    assert pruned.get_vocab_size() < teacher.get_vocab_size()


def test_an_unseen_word_is_spelled_not_lost(teacher_folder: Path):
    pruned = build("wordpiece", teacher_folder)
    assert pruned.encode("zebra").tokens == ["z", "##e", "##b", "##r", "##a"]


def test_frequent_pieces_come_first_and_size_and_count_limit_them(teacher_folder: Path):
    whole = build("wordpiece", teacher_folder)
    assert {whole.id_to_token(index) for index in (2, 3, 4)} == {"film", "is", "good"}
    assert build("wordpiece", teacher_folder, minimum_count=2).token_to_id("very") is None
    letters = [piece for piece in whole.get_vocab() if len(piece.removeprefix("##")) == 1]
    small = build("wordpiece", teacher_folder, size=len(letters) + 2 + 3)
    words = set(small.get_vocab()) - set(letters) - {"[PAD]", "[UNK]"}
    assert words == {"film", "is", "good"}
    assert build("words", None, minimum_count=2).get_vocab_size() == 2 + 3


def test_room_that_is_left_takes_the_teachers_other_pieces(teacher_folder: Path):
    pruned, filled = (build("wordpiece", teacher_folder, fill=fill) for fill in (False, True))
    assert set(pruned.get_vocab()) < set(filled.get_vocab())
    assert filled.encode("zebra").tokens == ["zebra"]
    seen = {index for text in TEXTS for index in filled.encode(text).ids}
    assert filled.token_to_id("zebra") > max(seen)  # behind all that occurs
    assert filled.token_to_id("[CLS]") is None
    for text in TEXTS:
        assert filled.encode(text).tokens == pruned.encode(text).tokens
    room = build("wordpiece", teacher_folder, fill=True, size=pruned.get_vocab_size() + 1)
    assert room.get_vocab_size() == pruned.get_vocab_size() + 1


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(StudentError, match=r"lower vocabulary\.minimum_count"):
        build("words", None, minimum_count=100)


HEADLINES = ["北京房价上涨", "上海房价下跌3%", "北京奥运会开幕", "iPhone4在北京上市"]


def test_chinese_words_are_single_characters():
    tokenizer = build_tokenizer(VocabularyConfig(kind="words"), HEADLINES)
    assert tokenizer.encode("房价在iPhone4").tokens == ["房", "价", "在", "iphone4"]
    assert all(len(piece) == 1 for piece in tokenizer.get_vocab() if not piece.isascii())


def test_bpe_learns_chinese_words_of_several_characters():
    tokenizer = build_tokenizer(VocabularyConfig(kind="bpe", minimum_count=2), HEADLINES)
    assert tokenizer.encode("北京房价").tokens == ["北京", "##房价"]
    assert tokenizer.encode("北京3%iPhone4").tokens[:3] == ["北京", "3", "%"]
    # What was seen at the start of a run or within it alone is known in the other place, too.
    assert tokenizer.encode("涨房在").tokens == ["涨", "##房", "##在"]


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_only_unseen_chinese_characters_are_unknown(kind: str):
    tokenizer = build_tokenizer(VocabularyConfig(kind=kind), HEADLINES)
    tokens = tokenizer.encode("北京猫房价狗").tokens
    assert tokens.count("[UNK]") == 2
    spelled = "".join(token.removeprefix("##") for token in tokens)
    assert spelled == "北京[UNK]房价[UNK]"


def test_long_texts_are_cut_and_counted(teacher_folder: Path):
    tokenizer = build("wordpiece", teacher_folder, max_length=3)
    tokens = encode(tokenizer, ["a film is very good", "a film is", ""])
    assert tokens.lengths.tolist() == [3, 3, 1] and tokens.cut == 1
    assert tokens.ids[-1] == 1  # a text without tokens is one [UNK]


def test_a_teacher_without_wordpiece_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(StudentError, match='kind = "words"'):
        build_tokenizer(VocabularyConfig(kind="wordpiece"), TEXTS, None)
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(StudentError, match="is BPE, not WordPiece"):
        build_tokenizer(VocabularyConfig(kind="wordpiece"), TEXTS, tmp_path / "tokenizer.json")


def test_the_teachers_wordpiece_is_taken_where_it_knows_the_texts(
    teacher_folder: Path, tmp_path: Path, capsys
):
    def chosen(texts: list[str], teacher: Path | None) -> str:
        return model_type(build_tokenizer(VocabularyConfig(), texts, teacher))

    own = teacher_folder / "tokenizer.json"
    assert chosen(TEXTS, own) == "WordPiece" and chosen(TEXTS, None) == "BPE"
    assert "unknown" not in capsys.readouterr().err
    assert chosen(["цены на жильё растут", "игры открылись"], own) == "BPE"
    assert "of the tokens are unknown to the teacher's WordPiece" in capsys.readouterr().err
    # Of Chinese, characters; a few of them among other letters change nothing.
    assert chosen(HEADLINES, own) == "WordLevel" and chosen(HEADLINES, None) == "WordLevel"
    assert chosen(["iPhone 4 opened in 北京 today", "цены на жильё"], None) == "BPE"
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert chosen(TEXTS, tmp_path / "tokenizer.json") == "BPE"
    assert "the teacher's tokenizer is BPE" in capsys.readouterr().err


def test_a_tokenizer_comes_back_from_its_file(teacher_folder: Path, tmp_path: Path):
    for kind in KINDS:
        tokenizer = build(kind, teacher_folder)
        tokenizer.save(str(tmp_path / "saved.json"))
        again = Tokenizer.from_file(str(tmp_path / "saved.json"))
        for text in [*TEXTS, "I don't “know” 酒店 🙂 naïve"]:
            assert again.encode(text).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_word_is_one_entry(kind: str, teacher_folder: Path):
    vocabulary = VocabularyConfig(kind=kind)
    texts = [*TEXTS, "a [MASK] film"]
    teacher = teacher_folder / "tokenizer.json"
    tokenizer = build_tokenizer(vocabulary, texts, teacher, mask="[MASK]")
    known = tokenizer.get_vocab()
    assert sorted(known.values()) == list(range(tokenizer.get_vocab_size()))
    assert tokenizer.encode("a [MASK] film").ids.count(known["[MASK]"]) == 1
    assert "[MASK]" not in build_tokenizer(vocabulary, TEXTS, teacher).get_vocab()
