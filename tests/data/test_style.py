"""The labelled text's habits, and bringing other texts to them."""

import pytest
from source_texts import numbered, tsv

from bert_kd.data.style import Rewriting, Style, learn_style

TREEBANK = [
    "it 's a film , and a good one .",
    "does n't the `` plot '' matter ?",
    "funny , sad ; never dull !",
    "we 're bored : they 've left .",
] * 10
TYPED = ["It's a film, and a good one.", 'Doesn\'t the "plot" matter?', "Funny, sad!"] * 10


def test_treebank_habits_are_learned_and_followed():
    style = learn_style(TREEBANK)
    assert style == Style(lower=True, tokenised=True, treebank_quotes=True)
    for typed, written in [
        ("It's a film, and a good one.", "it 's a film , and a good one ."),
        ("Doesn't the “plot” matter?!", "does n't the `` plot '' matter ? !"),
        ("We’re bored; I cannot say why...", "we 're bored ; i can not say why ..."),
        ("At 5:30 it cost 1,000 (or 3.5).", "at 5:30 it cost 1,000 ( or 3.5 ) ."),
        ("They'll go to the players' room", "they 'll go to the players ' room"),
        ("well-made -- really", "well-made -- really"),
    ]:
        assert style(typed) == written


@pytest.mark.parametrize("text", TREEBANK)
def test_a_text_that_follows_the_habits_stays(text):
    assert learn_style(TREEBANK)(text) == text


def test_texts_without_a_habit_leave_others_as_they_are():
    for texts in (TYPED, [*TREEBANK, *TYPED], TREEBANK[:3], []):
        style = learn_style(texts)
        assert style.habits == []
        rewriting = Rewriting(style)
        assert rewriting("It's “so”, Ｏｋ 好 好!") == "It's “so”, Ｏｋ 好 好!"
        assert rewriting.notes() == []


def test_chinese_spaces_and_marks():
    style = learn_style(["房间很小，很吵！", "早餐不错：值得。"] * 20)
    assert (style.spaced_cjk, style.full_width) == (False, True)
    assert style("房 间 很 小,iPhone 4 好!") == "房间很小，iPhone 4 好！"
    style = learn_style(["房 间 很 小 , 很 吵", "早 餐,不 错!"] * 20)
    assert style.spaced_cjk is True
    assert style("房间 很小") == "房 间 很 小"
    assert learn_style(["好,好", "好，好"] * 30).full_width is None


def test_the_pool_is_brought_to_the_labelled_style_before_it_is_compared(write, prepared):
    labelled = [(f"film {number} , it 's fine .", number % 2) for number in range(60)]
    write("train.tsv", tsv(labelled))
    write("pool.tsv", tsv([("Film 3, it's fine.",), ("It's New, no?",)], header=("text",)))
    made, rows = prepared(transfer=("pool.tsv",))
    assert rows["transfer"].texts == ["it 's new , no ?"]  # the other stands in a labelled split
    assert any("2 of 2 texts rewritten" in note for note in made.report["notes"])
    made, rows = prepared(transfer=("pool.tsv",), transfer_style="as given")
    assert rows["transfer"].texts == ["Film 3, it's fine.", "It's New, no?"]
    assert not any("rewritten" in note for note in made.report["notes"])


def test_the_budget_keeps_texts_by_chance_or_by_what_they_add(write, prepared):
    write("train.tsv", tsv(numbered(60, prefix="a good film of number")))
    pool = [
        "number of film good",  # known words in a new order
        "a good film of",  # nothing new
        "zebras quarrel unseen elsewhere",  # nothing known
        "number of film good a",  # said before
    ]
    write("pool.tsv", tsv([(text,) for text in pool], header=("text",)))
    _, rows = prepared(transfer=("pool.tsv",), transfer_rows=1, transfer_choice="diverse")
    assert rows["transfer"].texts == pool[:1]
    made, rows = prepared(transfer=("pool.tsv",), transfer_rows=2)
    assert made.rows["transfer"] == 2
    assert any("2 of 4 rows kept (random)" in note for note in made.report["notes"])
    write("other.tsv", tsv([(text,) for text in pool[::-1]], header=("text",)))
    _, turned = prepared(transfer=("other.tsv",), transfer_rows=2)
    assert set(turned["transfer"].texts) == set(rows["transfer"].texts)
    made, _ = prepared(transfer=("pool.tsv",), transfer_rows=9)
    assert made.rows["transfer"] == 4
    assert not any("kept" in note and "transfer_rows" in note for note in made.report["notes"])
