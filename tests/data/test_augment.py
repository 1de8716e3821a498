"""Views of rows: what is done to a text, and what a view depends on."""

import random
from collections import Counter

import numpy as np
import pytest

from bert_kd.config import AugmentConfig
from bert_kd.data.augment import KINDS, Partners, Tools, make_views
from bert_kd.data.keys import row_keys
from bert_kd.data.rows import Rows
from bert_kd.data.units import split_units
from bert_kd.data.word_classes import WordClasses

NOTHING = {"mask": 0, "replace_by_class": 0, "neighbours": 0, "ngram": 0, "mix": 0, "swap": 0}
CLASSES = WordClasses({"good": 0, "great": 0}, [["good", "great"]], [[1, 2]])
TEXTS = [f"a good film number {number} , with a great plot" for number in range(40)]


def rows_of(texts, texts_b=None, labels=None):
    labels = np.zeros(len(texts), dtype=np.int64) if labels is None else np.array(labels)
    return Rows(
        row_keys(texts, texts_b), texts, texts_b, labels, np.zeros(len(texts), dtype=np.int16)
    )


def only(**settings):
    return AugmentConfig(**{**NOTHING, "views": 1, **settings})


def views(rows, config, count=1, **tools):
    given = {"classes": WordClasses({}, (), ()), "partners": Partners({})}
    return make_views(rows, [count] * len(rows), config, Tools(**{**given, **tools}))


def test_masked_words_become_the_mask_token_and_the_spacing_stays():
    made = views(rows_of(["it  is n't good ,"]), only(mask=0.9), mask_token="[MASK]")
    assert made.texts[0].count("[MASK]") >= 2
    assert made.texts[0].endswith(" ,") and "  " in made.texts[0]
    assert made.views.tolist() == [KINDS["mask"]] and made.labels.tolist() == [-1]
    assert made.keys.tolist() == row_keys(made.texts).tolist()


def test_without_a_mask_token_masked_words_are_left_out():
    made = views(rows_of(TEXTS), only(mask=0.3))
    for text in made.texts:
        number = next(word for word in TEXTS if set(text.split()) <= set(word.split()))
        assert len(text.split()) < len(number.split())
        assert not text.startswith(" ")


def test_the_share_of_masked_words_is_the_setting():
    long = [" ".join(f"word{number}" for number in range(200)) + f" {row}" for row in range(50)]
    made = views(rows_of(long), only(mask=0.1), mask_token="[MASK]")
    share = sum(text.count("[MASK]") for text in made.texts) / (50 * 201)
    assert share == pytest.approx(0.1, abs=0.01)


def test_words_are_replaced_by_their_class():
    made = views(rows_of(["a good film"]), only(replace_by_class=0.9), classes=CLASSES)
    assert made.texts == ["a great film"]
    assert made.views.tolist() == [KINDS["replace_by_class"]]


def test_words_near_in_meaning_may_be_new_and_take_the_case():
    asked = []

    def neighbours(texts, spans):
        asked.extend(
            text[start:end] for text, row in zip(texts, spans, strict=True) for start, end in row
        )
        return [
            [["superb"] if text[start:end].lower() == "good" else [] for start, end in row]
            for text, row in zip(texts, spans, strict=True)
        ]

    rows = rows_of(["Good film", "a  good film", "GOOD ."])
    made = views(rows, only(neighbours=0.9), neighbours=neighbours)
    assert set(made.texts) <= {"Superb film", "a  superb film", "SUPERB ."} and len(made) >= 2
    assert set(asked) <= {"Good", "GOOD", "good", "film", "a"}


def test_an_ngram_is_a_span_of_the_text():
    made = views(rows_of(TEXTS), only(ngram=1.0), count=3)
    lengths = set()
    for text in made.texts:
        assert any(text in whole for whole in TEXTS)
        lengths.add(len(split_units(text).words))
    assert lengths == {1, 2, 3, 4, 5}
    assert set(made.views.tolist()) == {KINDS["ngram"]}


def test_parts_of_two_texts_are_joined_at_a_mark():
    mine, other = "what a film , never dull", "no plot , no wit"
    partners = Partners({0: [(other, None)]})
    made = views(rows_of([mine]), only(mix=1.0), count=6, partners=partners)
    assert set(made.texts) == {"what a film , no wit", "no plot , never dull"}
    assert set(made.views.tolist()) == {KINDS["mix"]}


def test_partners_are_of_the_same_class_or_of_any():
    partners = Partners({label: [(str(label), None)] for label in range(4)})
    source = random.Random(3)
    drawn = Counter(partners.draw(2, None, source)[0] for _ in range(4000))
    assert drawn["2"] / 4000 == pytest.approx(1 / 2 + 1 / 2 / 4, abs=0.03)
    assert min(drawn["0"], drawn["1"], drawn["3"]) > 400


def test_chinese_parts_are_joined_without_spaces():
    partners = Partners({0: [("早餐好，值得", None)]})
    made = views(rows_of(["房间小，很吵"]), only(mix=1.0), count=6, partners=partners)
    assert set(made.texts) == {"房间小，值得", "早餐好，很吵"}


def test_one_side_of_a_pair_is_changed_and_none_is_ever_empty():
    firsts = [f"a good film {number}" for number in range(60)]
    rows = rows_of(firsts, ["one good plot"] * 60)
    made = views(rows, only(replace_by_class=0.5, ngram=1.0), classes=CLASSES)
    assert len(made) > 30
    changed = [
        (text not in firsts) + (text_b != "one good plot")
        for text, text_b in zip(made.texts, made.texts_b, strict=True)
    ]
    assert set(changed) == {1}
    made = views(rows_of(["word"], ["other"]), only(mask=0.9), count=4)
    assert all(made.texts) and all(made.texts_b)


def test_pairs_are_swapped_and_joined_with_other_second_sides():
    rows = rows_of(["cats sleep"], ["a cat sleeps"])
    swapped = views(rows, only(swap=1.0))
    assert (swapped.texts, swapped.texts_b) == (["a cat sleeps"], ["cats sleep"])
    sharing = [("cats purr", "it purrs")]
    partners = Partners({0: [("dogs bark", "it barks")]}, {"cats": sharing})
    made = views(rows, only(mix=1.0), count=6, partners=partners)
    assert made.texts == ["cats sleep"] * 2
    assert set(made.texts_b) == {"it purrs", "it barks"}


@pytest.fixture
def full():
    return {
        "classes": CLASSES,
        "partners": Partners({0: [(text, None) for text in TEXTS[:5]]}),
        "mask_token": "[MASK]",
        "neighbours": lambda texts, spans: [[["x", "y"] for _ in row] for row in spans],
    }


def test_views_go_by_row_and_seed_and_not_by_order_or_neighbouring_rows(full):
    config = AugmentConfig(views=2)
    made = views(rows_of(TEXTS), config, 2, **full)
    order = random.Random(0).sample(TEXTS, len(TEXTS))
    again = views(rows_of(order[:25]), config, 2, **full)
    assert set(again.texts) < set(made.texts)
    other = views(rows_of(TEXTS), AugmentConfig(views=2, seed=1), 2, **full)
    assert other.texts != made.texts


def test_no_view_is_its_row_or_repeats_another_of_it(full):
    made = views(rows_of(TEXTS[:1]), AugmentConfig(), 30, **full)
    assert len(set(made.texts)) == len(made.texts) > 20
    assert TEXTS[0] not in made.texts
    assert 0 not in made.views.tolist()


def test_as_many_views_as_wanted_of_each_row_are_tried(full):
    made = make_views(rows_of(TEXTS[:3]), [0, 3, 1], AugmentConfig(mask=0.4), Tools(**full))
    assert 0 < len(made) <= 4
    nothing = make_views(rows_of(["", "word"]), [1, 1], only(ngram=1.0), Tools(**full))
    assert len(nothing) == 0 and nothing.texts == []
