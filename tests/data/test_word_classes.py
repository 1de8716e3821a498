"""Word classes learned from where words stand."""

import random

import pytest

from bert_kd.data.word_classes import learn_classes

NOUNS = ["film", "play", "song", "book", "story"]
VERBS = ["bored", "moved", "pleased", "scared", "amused"]


@pytest.fixture(scope="module")
def texts():
    source = random.Random(1)
    return [
        f"the {source.choice(NOUNS)} {source.choice(VERBS)} me in {source.randint(1, 5)} ways ."
        for _ in range(400)
    ]


@pytest.fixture(autouse=True)
def _small_classes(monkeypatch):
    monkeypatch.setattr("bert_kd.data.word_classes.WORDS_PER_CLASS", 3)


def test_words_in_the_same_places_share_a_class(texts):
    classes = learn_classes(texts, seed=3).class_of
    assert len({classes[word] for word in NOUNS}) == 1
    assert len({classes[word] for word in VERBS}) == 1
    assert classes["film"] != classes["bored"]
    assert "." not in classes


def test_classes_do_not_depend_on_the_order_of_the_texts(texts):
    assert learn_classes(texts, seed=3) == learn_classes(texts[::-1], seed=3)


def test_another_word_is_drawn_by_its_frequency(texts):
    classes = learn_classes([*texts, *["the film bored me in 1 ways ."] * 600], seed=3)
    source = random.Random(0)
    drawn = [classes.draw("play", source) for _ in range(500)]
    assert set(drawn) <= set(NOUNS) - {"play"}
    assert drawn.count("film") > 300
    assert classes.draw("unheard", source) is None


def test_chinese_needs_no_spaces():
    source = random.Random(1)
    nouns, qualities = "间子屋门型", "大小好新旧"
    texts = [f"房{source.choice(nouns)}很{source.choice(qualities)}。" for _ in range(400)]
    classes = learn_classes(texts, seed=3).class_of
    assert len({classes[noun] for noun in nouns}) == 1
    assert len({classes[quality] for quality in qualities}) == 1
    assert classes["间"] != classes["大"]


@pytest.mark.parametrize("texts", [[], [""], ["one word"], ["a", "a", "a"]])
def test_too_little_text_gives_no_classes(texts):
    classes = learn_classes(texts, seed=3)
    assert classes.draw("a", random.Random(0)) is None
