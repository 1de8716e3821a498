"""How fast students train: the package's loop beside the ordinary one, and what each part brings.

    python benchmarks/training.py --data FOLDER --json benchmarks/results/training.json
    python benchmarks/training.py --data FOLDER --accuracy --json \
        benchmarks/results/training-accuracy.json

All loops train the same student (random start, WordPiece of 30,000 entries) with the same loss
against teacher logits drawn at random, over the same rows, in interleaved rounds. The ordinary loop
shuffles and pads each batch to its longest text; then one part after the other is switched on. The
usual way of `nn.LSTM`, packed sequences, is timed too. `--accuracy` trains on gold labels by the
ordinary loop and by the package's and compares their accuracy, rows and seeds paired; rows of train
are held out for it, as a thousand of validation and test alone tell no point of difference. There
the ordinary loop is in fp32, and the package's in the precision that it takes by itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_statistics import draw_together
from speed_runs import (
    Labelled,
    Row,
    data_set,
    fact_row,
    facts,
    interleaved,
    options_parser,
    parse_rounds,
    rate_rows,
    read_split,
    report,
    result,
    rounds_made,
    torch_threads,
    user_errors,
)
from tokenizers import Tokenizer
from training_loops import Loop, Parts, package_epoch, train_ordinarily, training_device

from bert_kd.config import StudentConfig
from bert_kd.data.batches import Ints, encode
from bert_kd.errors import UserError
from bert_kd.hardware import precision_of
from bert_kd.progress import say
from bert_kd.student.model import BiLSTM, Shape
from bert_kd.student.train import Examples, predict, train
from bert_kd.student.vocabulary import build_tokenizer
from bert_kd.teacher.base import locate_model

ROWS = 4096
HELD_OUT = 1000
SAMPLES = 10_000
"""Draws of the bootstrap."""
PACKAGE = "the package's loop"
ORDINARY, PACKED = "ordinary loop", "ordinary loop, packed"
LADDER = {
    ORDINARY: Parts(),
    "+ buckets": Parts(buckets=True),
    "+ deferred embedding": Parts(buckets=True, deferred=True),
    "+ fused AdamW": Parts(buckets=True, deferred=True, fused=True),
    "+ bf16": Parts(buckets=True, deferred=True, fused=True, bf16=True),
    PACKED: Parts(packed=True),
    "all parts, but packed": Parts(packed=True, buckets=True, deferred=True, fused=True),
}
"""Each of the first rows has one part more than the row above it."""


@dataclass(frozen=True)
class Lesson:
    """What the loops of one size learn."""

    config: StudentConfig
    tokenizer: Tokenizer
    shape: Shape
    examples: Examples


def student_config(hidden: int) -> StudentConfig:
    """Return the package's student of this hidden size, the `large` one from 256 on."""
    sizes = {"size": "large" if hidden >= 256 else "base", "model": {"hidden_size": hidden}}
    return StudentConfig.model_validate({"name": "student", **sizes})


def prepare(
    config: StudentConfig, train_split: Labelled, chosen: Sequence[int], base: Path | str, seed: int
) -> Lesson:
    """Return the lesson over the `chosen` rows, with teacher logits drawn at random."""
    tokenizer = build_tokenizer(config.vocabulary, train_split.texts, Path(base) / "tokenizer.json")
    shape = Shape(
        vocabulary=tokenizer.get_vocab_size(),
        embedding=config.embedding.size,
        hidden=config.model.hidden_size,
        layers=config.model.layers,
        pooling=config.model.pooling,
        dense=config.model.dense,
        classes=train_split.classes,
        dropout=config.model.dropout,
    )
    drawn = np.random.default_rng(seed).normal(size=(len(chosen), shape.classes))
    examples = Examples(
        encode(tokenizer, [train_split.texts[row] for row in chosen]),
        None,
        train_split.labels[list(chosen)],
        drawn.astype(np.float32),
    )
    return Lesson(config, tokenizer, shape, examples)


# --- speed -------------------------------------------------------------------------------------


def measure_speed(lesson: Lesson, rounds: int, minutes: float | None) -> tuple[list[Row], int]:
    """Return the examples per second of all loops, compared with the ordinary one; and the rounds
    made.
    """
    config, shape, examples = lesson.config, lesson.shape, lesson.examples
    loops = {name: Loop(config, shape, examples, parts, 1) for name, parts in LADDER.items()}
    epochs = dict.fromkeys(loops, 0)

    def turn(name: str) -> float:
        epochs[name] += 1  # each time other batches
        return len(examples) / loops[name].epoch(epochs[name])

    turns = {name: lambda name=name: turn(name) for name in loops}
    for precision in ("fp32", "bf16"):
        training = config.training.model_copy(update={"precision": precision})
        mine = config.model_copy(update={"training": training})
        turns[f"{PACKAGE}, {precision}"] = lambda mine=mine: (
            len(examples) / package_epoch(mine, shape, examples, 1)
        )
    what = f"training, H = {shape.hidden}"
    found = interleaved(turns, rounds, minutes=minutes, what=what)
    return rate_rows(found, f"h{shape.hidden}.examples_per_second"), rounds_made(found)


# --- accuracy ----------------------------------------------------------------------------------


Trainer = Callable[[Lesson, Examples, int, int], BiLSTM]
"""A whole training: lesson, validation, epochs and seed to the model that is kept."""


def train_by_ordinary(lesson: Lesson, validation: Examples, epochs: int, seed: int) -> BiLSTM:
    """Return a student that the ordinary loop trained."""
    loop = Loop(lesson.config, lesson.shape, lesson.examples, Parts(), seed)
    train_ordinarily(loop, validation, epochs)
    return loop.model


def train_by_package(lesson: Lesson, validation: Examples, epochs: int, seed: int) -> BiLSTM:
    """Return a student that the package's loop trained."""
    training = lesson.config.training.model_copy(update={"epochs": epochs})
    torch.manual_seed(seed)
    model = BiLSTM(lesson.shape)
    with tempfile.TemporaryDirectory() as aside:
        train(
            lesson.config.model_copy(update={"training": training}),
            model,
            lesson.examples,
            validation,
            Path(aside),
            seed=seed,
            name=f"seed {seed}",
            fingerprint="",
        )
    return model


TRAINERS: Mapping[str, Trainer] = {ORDINARY: train_by_ordinary, PACKAGE: train_by_package}


def measure_accuracy(
    lesson: Lesson, folder: Path, held_out: Labelled, seeds: int, epochs: int
) -> list[Row]:
    """Return of both loops the seconds of a whole training, medians over seeds, and accuracy, means
    over seeds; and the difference in accuracy with its interval, of a paired bootstrap over rows
    and seeds.

    Seconds are from the random start to the weights that are kept: validation after each epoch is
    part of them, and so are the package's checkpoints and history. The loops take turns in going
    first. The rows are those of validation and test and the held out ones of train together: on the
    first both loops choose the epoch that they keep, by the same rule.
    """
    judged = [read_split(folder, split) for split in ("validation", "test")] + [held_out]
    parts = [_examples(lesson.tokenizer, split) for split in judged]
    names = list(TRAINERS)
    answers: dict[str, list[Ints]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gold = np.concatenate([part.labels for part in parts])
    for seed in range(1, seeds + 1):
        for name in names if seed % 2 else names[::-1]:
            started = time.perf_counter()
            model = TRAINERS[name](lesson, parts[0], epochs, seed)
            seconds[name].append(time.perf_counter() - started)
            found = np.concatenate([predict(model, rows).argmax(1) for rows in parts])
            answers[name].append(found)
            say(f"seed {seed}, {name}: {(found == gold).mean():.4f}")
    size = f"h{lesson.shape.hidden}"
    rows = rate_rows(seconds, f"{size}.seconds")
    drawn = draw_together(
        gold, {name: np.stack(found) for name, found in answers.items()}, SAMPLES, 17
    )
    for name in answers:
        rows.append(fact_row(name, f"{size}.accuracy", drawn.accuracy(name).value))
    difference = drawn.difference(PACKAGE, ORDINARY)
    for part in ("value", "low", "high"):
        metric = f"{size}.accuracy_difference_{part}"
        rows.append(fact_row(PACKAGE, metric, getattr(difference, part)))
    rows.append(fact_row(PACKAGE, f"{size}.judged_rows", len(gold)))
    return rows


def _examples(tokenizer: Tokenizer, split: Labelled) -> Examples:
    return Examples(encode(tokenizer, split.texts), None, split.labels)


# --- the command -------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options_parser(__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 128], metavar="H")
    parser.add_argument(
        "--rows", type=int, help="of train, drawn at random; else 4096, of --accuracy all"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default="offline", help="whose WordPiece is pruned")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracy, not speed")
    parser.add_argument("--seeds", type=int, default=3, help="with --accuracy")
    parser.add_argument("--epochs", type=int, default=8, help="with --accuracy")
    parser.add_argument(
        "--held-out",
        type=int,
        help="rows of train that --accuracy judges by; else 1000, of a small set a quarter",
    )
    return parse_rounds(parser, arguments, without_rounds=("accuracy",))


def chosen_rows(options: argparse.Namespace, rows: int) -> tuple[Ints, Ints]:
    """Return the rows of train that are held out for `--accuracy`, and those to train on.

    Raises UserError where nothing would be left to train on.
    """
    drawn = np.random.default_rng(17).permutation(rows)
    if not options.accuracy:
        return drawn[:0], drawn[: options.rows or ROWS]
    held_out = min(HELD_OUT, rows // 4) if options.held_out is None else options.held_out
    if held_out >= rows:
        raise UserError(f"train has {rows:,} rows: give a --held-out below that")
    return drawn[:held_out], drawn[held_out:][: options.rows or rows]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the benchmark's JSON."""
    usual = "trec" if options.accuracy else "sst2"
    name, folder = data_set(options.data, options.set, usual)
    split = read_split(folder, "train")
    held, chosen = chosen_rows(options, len(split))
    device = training_device()
    say(f"all loops train on {device}")
    lessons = [
        prepare(config, split, chosen.tolist(), locate_model(options.model), 17)
        for config in (_config(options, hidden) for hidden in options.hidden)
    ]
    told: dict[str, Any] = {
        "benchmark": "training",
        "set": name,
        "rows": len(chosen),
        "batch_size": options.batch_size,
        "device": str(device),
        "sizes": {f"h{lesson.shape.hidden}": _size(lesson) for lesson in lessons},
    }
    if not options.accuracy:
        made = facts(options, options.threads, **told)
        found = [measure_speed(lesson, options.rounds, options.minutes) for lesson in lessons]
        rows = [row for part, _ in found for row in part]
        return result(made, rows, min(rounds for _, rounds in found))
    asked: Any = lessons[0].config.training.precision
    told |= {
        "benchmark": "training-accuracy",
        "seeds": options.seeds,
        "epochs": options.epochs,
        "precision": {ORDINARY: "fp32", PACKAGE: precision_of(asked)},
    }
    made = facts(options, options.threads, **told)
    rows = []
    for lesson in lessons:
        held_out = split.take(held)
        rows += measure_accuracy(lesson, folder, held_out, options.seeds, options.epochs)
    return result(made, rows, rounds=None)


def _config(options: argparse.Namespace, hidden: int) -> StudentConfig:
    """Return the student of this size as all loops train it, on gold labels for `--accuracy`."""
    config = student_config(hidden)
    training = config.training.model_copy(update={"batch_size": options.batch_size})
    config = config.model_copy(update={"training": training})
    if not options.accuracy:
        return config
    gold = config.loss.model_copy(update={"hard_weight": 1.0, "soft_weight": 0.0})
    return config.model_copy(update={"loss": gold})


def _size(lesson: Lesson) -> dict[str, float]:
    """Return what the JSON tells of a lesson."""
    lengths = lesson.examples.lengths
    return {
        "vocabulary": lesson.shape.vocabulary,
        "embedding": lesson.shape.embedding,
        "tokens_mean": float(lengths.mean()),
        "tokens_longest": int(lengths.max()),
    }


def main() -> None:
    """Measure, print a line per value, and write the JSON file where asked."""
    options = parse()
    with user_errors(), torch_threads(options.threads):
        report(measure(options), options.json)


if __name__ == "__main__":
    main()
