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
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bert_kd.errors import StudentError
from bert_kd.store import read_json, write_json, write_text, writing
from bert_kd.student.embeddings import SPREAD

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
    dropout: float = 0.0

    @property
    def pooled(self) -> int:
        """Width of the pooled state: both directions; for pairs u, v, u·v and |u−v|."""
        return 2 * self.hidden * (4 if self.pair else 1)


class Output(NamedTuple):
    """What the student answers: logits [batch, classes] and the pooled state [batch, pooled]."""

    logits: Tensor
    pooled: Tensor


class BiLSTM(nn.Module):
    """Embedding → bidirectional LSTM → masked pooling → dense → output; padding never changes an
    answer.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.pooling not in POOLINGS:
            raise StudentError(f"pooling {shape.pooling!r} is none of {', '.join(POOLINGS)}")
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        self.lstm = nn.LSTM(
            shape.embedding,
            shape.hidden,
            num_layers=shape.layers,
            bidirectional=True,
            batch_first=True,
            dropout=shape.dropout if shape.layers > 1 else 0.0,
        )
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
        pooled = self.encode(ids, lengths)  # [batch, 2 · hidden]
        if self.shape.pair:
            if ids_b is None or lengths_b is None:
                raise StudentError("this student compares two texts; only one was given")
            other = self.encode(ids_b, lengths_b)  # [batch, 2 · hidden]
            pooled = torch.cat([pooled, other, pooled * other, (pooled - other).abs()], dim=-1)
        hidden = self.dropout(pooled)  # [batch, pooled]
        if self.dense is not None:
            hidden = self.dropout(torch.relu(self.dense(hidden)))  # [batch, dense]
        return Output(self.output(hidden), pooled)

    def encode(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the pooled states [batch, 2 · hidden] of one side."""
        vectors = self.dropout(self.embedding(ids))  # [batch, length, embedding]
        on_cpu = lengths.cpu()
        if int(on_cpu.min()) == ids.shape[1]:  # nothing is padded: no need to pack
            states, (final, _) = self.lstm(vectors)  # [batch, length, 2 · hidden]
        else:
            packed = pack_padded_sequence(vectors, on_cpu, batch_first=True, enforce_sorted=False)
            packed_states, (final, _) = self.lstm(packed)
            states, _ = pad_packed_sequence(
                packed_states, batch_first=True, total_length=ids.shape[1]
            )
        if self.shape.pooling == "final":
            return torch.cat([final[-2], final[-1]], dim=-1)  # forward's last, backward's first

        pooled: Tensor  # [batch, 2 · hidden]
        steps = torch.arange(ids.shape[1], device=ids.device)
        real = (steps < lengths.to(ids.device)[:, None])[:, :, None]  # [batch, length, 1]
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
