"""The bundled helpdesk set is what its README says."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from places import HELPDESK

LABELS = json.loads((HELPDESK / "labels.json").read_text(encoding="utf-8"))


def rows(split: str) -> list[list[str]]:
    lines = (HELPDESK / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == ("text" if split == "transfer" else "text\tlabel\thard")
    return [line.split("\t") for line in lines[1:]]


@pytest.mark.parametrize(("split", "each"), [("train", 100), ("validation", 25), ("test", 25)])
def test_splits_are_stratified_with_hard_messages_everywhere(split: str, each: int):
    found = rows(split)
    assert all(len(row) == 3 for row in found)
    assert Counter(row[1] for row in found) == dict.fromkeys(LABELS, each)
    assert len(LABELS) == 8 and {row[2] for row in found} == {"0", "1"}
    hard = Counter(row[1] for row in found if row[2] == "1")
    assert all(hard[label] >= 0.15 * each for label in LABELS)


def test_no_message_stands_twice_in_all_splits_together():
    texts = [row[0].casefold() for split in ("train", "validation", "test", "transfer")
             for row in rows(split)]  # fmt: skip
    assert len(texts) == len(set(texts)) == 1200 + 1092


def test_messages_are_3_to_60_words_and_begin_in_many_ways():
    texts = [row[0] for split in ("train", "validation", "test") for row in rows(split)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 3 and max(lengths) <= 60
    openings = Counter(tuple(text.lower().split()[:3]) for text in texts)
    assert max(openings.values()) <= 0.01 * len(texts)
    assert sum(length <= 8 for length in lengths) > 0.15 * len(texts)
    assert sum(length >= 26 for length in lengths) > 0.15 * len(texts)


def test_a_bag_of_words_fails_on_the_hard_messages_more_often():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = rows("train"), rows("validation") + rows("test")
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10.0, max_iter=1000))
    words.fit([row[0] for row in train], [row[1] for row in train])
    right = words.predict([row[0] for row in test]) == [row[1] for row in test]
    is_hard = [row[2] == "1" for row in test]
    hard = sum(right[i] for i in range(len(test)) if is_hard[i]) / sum(is_hard)
    easy = sum(right[i] for i in range(len(test)) if not is_hard[i]) / (len(test) - sum(is_hard))
    assert hard < easy - 0.1
