"""The BiLSTM student and its folder on disk.

Here: the network (Tang et al. 2019, section 3.1.2: a bidirectional LSTM, a dense layer, an output
layer) with masked pooling, and saving and loading. Not here: training (`train.py`) and serving,
which needs no torch (`bert_kd.runtime`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from bert_kd.errors import StudentError
from bert_kd.store import read_json, write_json, write_text, writing
from bert_kd.student.embeddings import SPREAD

UNKNOWN_ID = 1
"""Of `vocabulary.UNKNOWN`, in every student's tokenizer."""
POOLINGS = ("final", "max", "mean", "attention")


@dataclass(frozen=True)
class Shape:
    """All sizes of a student."""

    vocabulary: int
    embedding: int
    hidden: int
    layers: int
    pooling: str
    dense: int
    classes: int
    pair: bool = False
    match: bool = False
    """Of pairs: whether a token also stands in the other text is part of what is read."""
    dropout: float = 0.0
    word_dropout: float = 0.0
    """Share of the tokens that training shows as unknown, others at each step."""

    @property
    def pooled(self) -> int:
        """Width of the pooled state: both directions; for pairs u, v, u·v and |u−v|."""
        return 2 * self.hidden * (4 if self.pair else 1)


class Output(NamedTuple):
    """What the student answers: logits [batch, classes] and the pooled state [batch, pooled]."""

    logits: Tensor
    pooled: Tensor


class Layer(nn.Module):
    """One bidirectional layer as two LSTMs, each reading its real tokens first and padding last.

    What follows a token never reaches it, so no sequence need be packed: padded batches go through
    the fused kernels (oneDNN, cuDNN) as they are.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.rightward = nn.LSTM(size, hidden, batch_first=True)
        self.leftward = nn.LSTM(size, hidden, batch_first=True)

    def forward(self, vectors: Tensor, mirror: Tensor) -> Tensor:
        """Return states [batch, length, 2 · hidden] of `vectors` [batch, length, size].

        `mirror` [batch, length] is, for each step, the step of the same text counted from its end;
        padding is its own. States of padding are without meaning.
        """
        rightward, _ = self.rightward(vectors)  # [batch, length, hidden]
        mirrored, _ = self.leftward(_take(vectors, mirror))  # [batch, length, hidden]
        return torch.cat([rightward, _take(mirrored, mirror)], dim=-1)


def _take(values: Tensor, steps: Tensor) -> Tensor:
    """Return `values` [batch, length, size] at `steps` [batch, length] of each row."""
    return values.gather(1, steps[:, :, None].expand(-1, -1, values.shape[-1]))


def _shared(ids: Tensor, others: Tensor, lengths_other: Tensor) -> Tensor:
    """Return which of `ids` [batch, length] also stand in the other text of the row (exact match,
    Chen et al. 2017, section 3.2).
    """
    steps = torch.arange(others.shape[1], device=ids.device)
    real = steps < lengths_other[:, None]  # [batch, other length]
    return ((ids[:, :, None] == others[:, None, :]) & real[:, None, :]).any(dim=-1)


class BiLSTM(nn.Module):
    """Embedding → bidirectional LSTM → masked pooling → dense → output; padding never changes an
    answer.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.pooling not in POOLINGS:
            raise StudentError(f"pooling {shape.pooling!r} is none of {', '.join(POOLINGS)}")
        self.shape = shape
        # Sparse: a step's gradient has only the rows that its batch touches.
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding, sparse=True)
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        self.match = nn.Parameter(torch.empty(shape.embedding)) if shape.match else None
        if self.match is not None:
            nn.init.normal_(self.match, std=SPREAD)
        sizes = [shape.embedding] + [2 * shape.hidden] * (shape.layers - 1)
        self.layers = nn.ModuleList(Layer(size, shape.hidden) for size in sizes)
        self.attention = nn.Linear(2 * shape.hidden, 1) if shape.pooling == "attention" else None
        self.dense = nn.Linear(shape.pooled, shape.dense) if shape.dense else None
        self.output = nn.Linear(shape.dense or shape.pooled, shape.classes)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        ids_b: Tensor | None = None,
        lengths_b: Tensor | None = None,
    ) -> Output:
        """Return logits and pooled states of padded `ids` [batch, length] with real `lengths`
        [batch] ≥ 1.

        A pair's second text is `ids_b`, `lengths_b`; both sides share all weights (siamese).
        """
        if self.shape.pair and (ids_b is None or lengths_b is None):
            raise StudentError("this student compares two texts; only one was given")
        pooled = self.encode(ids, lengths, ids_b, lengths_b)  # [batch, 2 · hidden]
        if ids_b is not None and lengths_b is not None:
            other = self.encode(ids_b, lengths_b, ids, lengths)  # [batch, 2 · hidden]
            pooled = torch.cat([pooled, other, pooled * other, (pooled - other).abs()], dim=-1)
        hidden = self.dropout(pooled)  # [batch, pooled]
        if self.dense is not None:
            hidden = self.dropout(torch.relu(self.dense(hidden)))  # [batch, dense]
        return Output(self.output(hidden), pooled)

    def encode(
        self,
        ids: Tensor,
        lengths: Tensor,
        others: Tensor | None = None,
        lengths_other: Tensor | None = None,
    ) -> Tensor:
        """Return the pooled states [batch, 2 · hidden] of one side; of a pair, `others` are the
        other side's ids.
        """
        lengths = lengths.to(ids.device)[:, None]  # [batch, 1]
        steps = torch.arange(ids.shape[1], device=ids.device)[None]  # [1, length]
        real = steps < lengths  # [batch, length]
        mirror = torch.where(real, lengths - 1 - steps, steps)  # [batch, length]
        shown = ids
        if self.training and self.shape.word_dropout:
            hidden = torch.rand(ids.shape, device=ids.device) < self.shape.word_dropout
            shown = ids.masked_fill(hidden & real, UNKNOWN_ID)
        states = self.embedding(shown)  # [batch, length, embedding]
        if self.match is not None and others is not None and lengths_other is not None:
            shared = _shared(ids, others, lengths_other.to(ids.device))  # [batch, length]
            states = states + shared[:, :, None] * self.match
        for layer in self.layers:
            states = layer(self.dropout(states), mirror)  # [batch, length, 2 · hidden]
        if self.shape.pooling == "final":  # rightward's last real step, leftward's first
            last = _take(states, lengths - 1)[:, 0, : self.shape.hidden]  # [batch, hidden]
            return torch.cat([last, states[:, 0, self.shape.hidden :]], dim=-1)

        pooled: Tensor  # [batch, 2 · hidden]
        real = real[:, :, None]  # [batch, length, 1]
        if self.shape.pooling == "max":
            pooled = states.masked_fill(~real, float("-inf")).amax(dim=1)
            return pooled
        if self.attention is None:  # mean
            pooled = (states * real).sum(dim=1) / real.sum(dim=1)
            return pooled
        # Zhou et al. 2016, equations 9–11: score tanh(h), softmax over the real tokens, weighted
        # sum of h.
        scores = self.attention(torch.tanh(states)).masked_fill(~real, float("-inf"))
        pooled = (states * torch.softmax(scores, dim=1)).sum(dim=1)
        return pooled


def count_parameters(model: BiLSTM) -> tuple[int, int]:
    """Return the number of parameters, and the number without the embedding."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, total - model.embedding.weight.numel()


@dataclass(frozen=True)
class Student:
    """A trained student with all that it needs to answer."""

    model: BiLSTM
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    name: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return self.model.shape


WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def save_student(folder: Path, student: Student) -> None:
    """Write weights, tokenizer and config into `folder`, the config last."""
    weights = {name: tensor.contiguous() for name, tensor in student.model.state_dict().items()}
    with writing(folder / WEIGHTS) as aside:
        save_file(weights, aside)
    write_text(folder / TOKENIZER, student.tokenizer.to_str(pretty=False))
    write_json(
        folder / CONFIG,
        {
            "name": student.name,
            "labels": list(student.labels),
            "shape": asdict(student.shape),
            **student.facts,
        },
    )


def load_student(folder: Path) -> Student:
    """Read a student's folder, on the CPU and in eval mode. Raises StudentError where it is missing
    or damaged.
    """
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).exists():
            raise StudentError(f"{folder / name} is missing: run train-students first")
    config = read_json(folder / CONFIG)
    try:
        model = BiLSTM(Shape(**config["shape"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:
        # safetensors, torch and tokenizers each raise their own kinds for a damaged file.
        raise StudentError(
            f"{folder} cannot be read as a student ({error}): train it again with "
            "--force train-students"
        ) from error
    facts = {key: config[key] for key in config.keys() - {"name", "labels", "shape"}}
    student = Student(model.eval(), tokenizer, tuple(config["labels"]), config["name"], facts)
    return student
