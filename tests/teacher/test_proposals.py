"""Words near in meaning, by token vectors and by a masked language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import SPECIAL, small_config, small_tokenizer, write_base
from tokenizers import AddedToken
from transformers import BertForMaskedLM

from bert_kd.config import AugmentConfig
from bert_kd.errors import TeacherError
from bert_kd.teacher.base import fingerprint_proposals
from bert_kd.teacher.proposals import (
    MaskedProposals,
    TokenNeighbours,
    mask_token,
    open_neighbours,
    whole_words,
)

PIECES = {"[MASK]": 0, "good": 1, "great": 2, "bad": 3, "##s": 4, "!": 5, "fine": 6, "2nd": 7}


@pytest.fixture
def masked_lm(tmp_path: Path) -> Path:
    """The folder of a small masked language model that says `lovely` first, everywhere."""
    torch.manual_seed(5)
    model = BertForMaskedLM(small_config())
    tokenizer = small_tokenizer()
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("lovely")] = 50.0
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("##ed")] = 60.0
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("fine")] = 40.0
    folder = tmp_path / "masked"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_whole_words_of_each_kind_of_vocabulary():
    assert whole_words(PIECES) == {"good": 1, "great": 2, "bad": 3, "fine": 6}
    assert whole_words({"Ġgood": 0, "s": 1, "ĠGood": 2, "Ġ!": 3}) == {"good": 0}
    assert whole_words({"▁good": 0, "s": 1, "▁": 2}) == {"good": 0}


def test_the_nearest_vectors_come_first_and_strangers_not_at_all():
    vectors = np.zeros((8, 3), dtype=np.float32)
    vectors[1], vectors[2], vectors[6], vectors[3] = (
        (1, 0, 0),
        (1, 0.1, 0),
        (1, 0.9, 0),
        (-3, -1, 0),
    )
    near = TokenNeighbours(PIECES, vectors)
    text = "Good bad, goods"
    assert near([text], [[(0, 4), (5, 8), (10, 15)]]) == [[("great", "fine"), (), ()]]
    assert near([], []) == []


def test_a_masked_model_proposes_whole_words_for_the_place_and_not_the_word_itself(masked_lm):
    propose = open_neighbours("unused", None, str(masked_lm))
    assert isinstance(propose, MaskedProposals)
    text = "the film was lovely and zebra-striped"
    found = propose(
        [text, "a film"], [[(4, 8), (13, 19), (24, 37)], []]
    )  # film, lovely, zebra-striped
    assert found[0][0][:2] == ["lovely", "fine"]
    assert found[0][1][0] == "fine" and "lovely" not in found[0][1]
    assert not any(word.startswith("#") for word in found[0][0])
    assert list(found[0][2]) == []  # no single piece, no vector
    assert found[1] == []


def test_a_mask_that_takes_in_the_space_before_it_is_found_too(masked_lm: Path, capsys):
    """As RoBERTa and its kin have it, whose masks are `lstrip`."""
    plain = open_neighbours("unused", None, str(masked_lm))
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True, special=True)})
    tokenizer.save_pretrained(masked_lm)
    propose = open_neighbours("unused", None, str(masked_lm))
    text = "the film was lovely and film"
    places = [[(4, 8), (13, 19), (24, 28)]]
    seen = propose.tokenizer("the [MASK]", return_offsets_mapping=True)["offset_mapping"]
    assert (3, 10) in [tuple(span) for span in seen]  # from the space on
    assert propose([text], places) == plain([text], places)
    assert propose([text], places)[0][1][0] == "fine"
    assert "has no word" not in capsys.readouterr().err


def test_a_masked_model_that_proposes_nothing_is_said_to_once(masked_lm: Path, capsys):
    propose = open_neighbours("unused", None, str(masked_lm))
    propose.words = {}  # it answers with parts of words alone
    for _ in range(2):
        propose(["the film was lovely"], [[(4, 8), (13, 19)]])
    assert capsys.readouterr().err.count("has no word for any of 2 places") == 1


def test_places_in_long_texts_and_among_masks_are_kept_apart(masked_lm):
    propose = open_neighbours("unused", None, str(masked_lm))
    text = "[MASK] film " + "very " * 100 + "fine"
    end = len(text)
    found = propose([text], [[(7, 11), (end - 4, end)]])
    assert found[0][0][0] == "lovely"
    # Beyond what the model reads: by token vectors, as for words of several pieces.
    assert found[0][1] == propose.nearest([text], [[(end - 4, end)]])[0][0]


def test_a_masked_model_is_asked_where_one_is_named_alone(base: Path, masked_lm: Path):
    assert isinstance(open_neighbours(str(masked_lm), None, None), TokenNeighbours)
    assert isinstance(open_neighbours(str(base), None, str(masked_lm)), MaskedProposals)
    assert mask_token(str(base), None) == SPECIAL[-1]


def test_what_is_no_masked_model_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(TeacherError, match="is no masked language model"):
        open_neighbours(str(base), None, str(base))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TeacherError, match="augment.neighbours = 0"):
        open_neighbours(str(empty), None, None)
    with pytest.raises(TeacherError, match="augment.mask = 0"):
        mask_token(str(empty), None)


def test_the_source_of_proposals_is_told_by_content(base: Path, masked_lm: Path, tmp_path: Path):
    other = write_base(tmp_path / "same")
    config = AugmentConfig(views=1)
    assert fingerprint_proposals(config, str(base)) == fingerprint_proposals(config, str(other))
    with_model = AugmentConfig(views=1, masked_lm=str(masked_lm))
    assert fingerprint_proposals(with_model, str(base)) != fingerprint_proposals(config, str(base))
