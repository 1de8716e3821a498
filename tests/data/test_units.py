"""Texts as units, and back as they were."""

import pytest

from bert_kd.data.units import ends_part, in_case_of, is_word, split_units


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it 's n't bad , really .", ["it", "'s", "n't", "bad", ",", "really", "."]),
        ("I don't, OK?", ["I", "don't", ",", "OK", "?"]),
        ("a feel-good film ... at $2.50", ["a", "feel-good", "film", "...", "at", "$", "2.50"]),
        ("房间很小，15.4寸 OK", ["房", "间", "很", "小", "，", "15.4", "寸", "OK"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("``  quoted ''", ["``", "quoted", "''"]),
        (" \t two  spaces\n", ["two", "spaces"]),
        ("", []),
        ("   ", []),
    ],
)
def test_a_text_is_split_and_comes_back_exactly(text, words):
    units = split_units(text)
    assert units.words == words
    assert units.text() == text


def test_a_part_has_no_white_space_around_it():
    units = split_units("  one  two, three ")
    assert units.part(1, 3).text() == "two,"
    assert units.part(0, 2).text() == "one  two"
    assert units.gaps[1] == "  "  # the whole is not changed by taking a part


def test_words_are_told_from_marks():
    assert [is_word(unit) for unit in ("n't", "3.5", "小", "...", "``")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert [ends_part(unit) for unit in (",", "。", "--", ")", "(", "'s", "word")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "model", "written"),
    [
        ("fine", "good", "fine"),
        ("fine", "Good", "Fine"),
        ("fine", "GOOD", "FINE"),
        ("you", "I", "You"),
        ("fine", "iPhone", "fine"),
        ("大", "小", "大"),
    ],
)
def test_a_word_takes_anothers_case(word, model, written):
    assert in_case_of(word, model) == written
