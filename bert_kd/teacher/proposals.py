"""Words that could stand in a word's place, by a pretrained language model: for views of the text.

Two ways, as in TinyBERT (Jiao et al. 2020, algorithm 1): a masked language model proposes words for
the place; where there is none, or a word is no single piece, its neighbours among the model's token
vectors are taken. Both bring words that the training text may not have. Not here: what becomes of
the proposals (`data/augment.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from bert_kd.errors import TeacherError
from bert_kd.progress import say
from bert_kd.teacher.base import locate_model
from bert_kd.teacher.model import quiet

NEAREST = 10
"""Neighbours of a word by token vectors."""
PROPOSED = 15
"""Words for a place by a masked language model (TinyBERT's K)."""
LEAST_COSINE = 0.3
"""Words whose vectors are less alike than this have little to do with each other."""
TEXTS_PER_BATCH = 32
MOST_TOKENS = 256
"""Wordpieces that a masked language model reads of a text; places beyond have no proposals."""

Span = tuple[int, int]


class TokenNeighbours:
    """Words near in meaning by cosine of the model's token vectors, their mean taken off."""

    def __init__(self, pieces: dict[str, int], vectors: npt.NDArray[np.float32]) -> None:
        words = whole_words(pieces)
        self.words = list(words)
        self.row = {word: row for row, word in enumerate(self.words)}
        chosen = vectors[list(words.values())] if words else vectors[:0]
        # Token vectors share a direction that tells frequent from rare (Mu and Viswanath 2018).
        chosen = chosen - chosen.mean(axis=0) if len(chosen) else chosen
        lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
        self.vectors = chosen / np.maximum(lengths, 1e-9)  # [words, hidden]
        self.found: dict[str, tuple[str, ...]] = {}

    def __call__(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]]
    ) -> list[list[Sequence[str]]]:
        """Return the neighbours of each span's word; none for a word that is no single piece."""
        words = [
            [text[start:end].lower() for start, end in places]
            for text, places in zip(texts, spans, strict=True)
        ]
        self._look_up({word for row in words for word in row})
        return [[self.found.get(word, ()) for word in row] for row in words]

    def _look_up(self, words: set[str]) -> None:
        asked = sorted(word for word in words if word in self.row and word not in self.found)
        for start in range(0, len(asked), 512):
            part = asked[start : start + 512]
            rows = [self.row[word] for word in part]
            alike = self.vectors[rows] @ self.vectors.T  # [part, words]
            alike[np.arange(len(rows)), rows] = -1.0
            nearest = np.argsort(-alike, axis=1, kind="stable")[:, :NEAREST]
            for word, own, columns in zip(part, alike, nearest, strict=True):
                self.found[word] = tuple(
                    self.words[column] for column in columns if own[column] >= LEAST_COSINE
                )


class MaskedProposals:
    """What a masked language model proposes for places of a text; other words by token vectors."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.nearest = TokenNeighbours(tokenizer.get_vocab(), _token_vectors(model))
        self.whole = whole_words(tokenizer.get_vocab())
        self.device = next(model.parameters()).device
        self.words = {piece: word for word, piece in self.whole.items()}
        self.length = min(
            MOST_TOKENS, getattr(model.config, "max_position_embeddings", MOST_TOKENS)
        )
        self.asked = self.proposed = 0
        """Places that the model was to see, and those that it had words for."""
        self.told = False

    def __call__(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]]
    ) -> list[list[Sequence[str]]]:
        """Return the proposals for each span, the best first, the word itself aside."""
        found = self.nearest(texts, spans)
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            part = slice(start, start + TEXTS_PER_BATCH)
            self._propose(texts[part], spans[part], found[part])
        if self.asked and not self.proposed and not self.told:
            self.told = True
            say(
                f"the masked language model has no word for any of {self.asked:,} places, so that "
                "its token vectors alone give neighbours: leave augment.masked_lm out, or name "
                "another model"
            )
        return found

    @torch.inference_mode()
    def _propose(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
        found: list[list[Sequence[str]]],
    ) -> None:
        """Put the proposals for words of a single piece into `found`."""
        masked, places = [], []
        for text, row in zip(texts, spans, strict=True):
            asked = [
                number for number, (start, end) in enumerate(row)
                if text[start:end].lower() in self.whole
            ]  # fmt: skip
            written, moved = _masked(text, [row[number] for number in asked], self._mask())
            masked.append(written)
            places.append(dict(zip(moved, asked, strict=True)))
            self.asked += len(asked)
        tokens = self.tokenizer(
            masked,
            padding=True,
            truncation=True,
            max_length=self.length,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = tokens.pop("offset_mapping")
        # By where a mask ends: RoBERTa's takes in the white space before it (`lstrip`).
        hits = [
            (row, token, places[row][end])
            for row, token in (tokens["input_ids"] == self.tokenizer.mask_token_id)
            .nonzero()
            .tolist()
            if (end := int(offsets[row, token, 1])) in places[row]
        ]
        if not hits:
            return
        rows = torch.tensor([row for row, _, _ in hits])
        at = torch.tensor([token for _, token, _ in hits])
        logits = self.model(**tokens.to(self.device)).logits[rows, at]  # [places, vocabulary]
        # Half of what is proposed may be no whole word.
        best = logits.topk(min(4 * PROPOSED, logits.shape[1])).indices.tolist()
        for (row, _, number), pieces in zip(hits, best, strict=True):
            start, end = spans[row][number]
            own = texts[row][start:end].lower()
            words = [self.words[piece] for piece in pieces if piece in self.words]
            others = [word for word in words if word != own][:PROPOSED]
            if others:
                found[row][number] = others
                self.proposed += 1

    def _mask(self) -> str:
        return str(self.tokenizer.mask_token)


def _masked(text: str, spans: Sequence[Span], mask: str) -> tuple[str, list[int]]:
    """Return `text` with these spans masked, and where each mask ends then."""
    parts, places, done, length = [], [], 0, 0
    for start, end in spans:
        parts += [text[done:start], mask]
        length += start - done + len(mask)
        places.append(length)
        done = end
    return "".join([*parts, text[done:]]), places


def whole_words(pieces: dict[str, int]) -> dict[str, int]:
    """Return the pieces that are words by themselves, in small letters, with their ids, in order.

    Of byte-pair and SentencePiece vocabularies those that begin a word, of WordPiece those that do
    not go on with one.
    """
    start = next((mark for mark in "Ġ▁" if any(piece.startswith(mark) for piece in pieces)), "")
    words: dict[str, int] = {}
    for piece, number in sorted(pieces.items(), key=lambda item: item[1]):
        word = piece.removeprefix(start).lower()
        if piece.startswith(start) and word.isalpha():
            words.setdefault(word, number)
    return words


def open_neighbours(
    name: str, revision: str | None, masked_lm: str | None
) -> TokenNeighbours | MaskedProposals:
    """Return proposals by the masked language model `masked_lm`, or by the token vectors of the
    teacher's model `name`.

    Raises TeacherError where the model can't be loaded.
    """
    source = locate_model(masked_lm or name)
    revision = None if masked_lm else revision
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            if masked_lm is None:
                model = AutoModel.from_pretrained(source, revision=revision)
                return TokenNeighbours(tokenizer.get_vocab(), _token_vectors(model))
            model, found = AutoModelForMaskedLM.from_pretrained(
                source, revision=revision, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TeacherError(
            f"the language model {str(source)!r} can't be loaded for views ({reason}): set "
            "augment.masked_lm to one that can, or augment.neighbours = 0"
        ) from error
    if found["missing_keys"] or tokenizer.mask_token is None:
        raise TeacherError(
            f"{str(source)!r} is no masked language model (it lacks "
            f"{', '.join(sorted(found['missing_keys'])) or 'a mask token'}): leave "
            "augment.masked_lm out, or give a model that was trained as one"
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return MaskedProposals(model, tokenizer)


def mask_token(name: str, revision: str | None) -> str | None:
    """Return how the tokenizer of the teacher's model writes a masked word; None: not at all."""
    source = locate_model(name)
    try:
        with quiet():
            token = AutoTokenizer.from_pretrained(source, revision=revision).mask_token
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TeacherError(
            f"the tokenizer of {str(source)!r} can't be loaded ({reason}): check teacher.model, or "
            "set augment.mask = 0"
        ) from error
    return None if token is None else str(token)


def _token_vectors(model: Any) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = (
        model.get_input_embeddings().weight.detach().float().cpu().numpy()
    )
    return vectors
