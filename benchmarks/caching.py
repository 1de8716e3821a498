"""How fast the teacher's logits are cached, in what memory, and what freezing its layers saves.

    python benchmarks/caching.py --data FOLDER --json benchmarks/results/caching.json
    python benchmarks/caching.py --data FOLDER --freezing --json FILE
    python benchmarks/caching.py --memory 10000 100000 1000000 --json FILE

The first compares rows a second of the package with the usual loop, batches of 32 in the order of
the file, padded to 128 wordpieces, and the logits of both. The model is MiniLM with a head that
nobody trained; with `--teacher` a run's trained one, with `--shape` random weights of that shape.
Beside it stands the rate of a large matrix product, measured in the same rounds, and the share of
it that a system reaches. `--freezing` times a training step of the teacher by the number of trained
layers, and with the states below them cached (`teacher.cache_prefix`). `--memory` fills the cache
with so many synthetic rows by a small model, each in a process of its own, and says its peak
memory. All of it runs on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import caching_memory
import numpy as np
import numpy.typing as npt
import torch
from speed_runs import (
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
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from bert_kd.config import TeacherConfig
from bert_kd.data.batches import Ints, bucketed_batches
from bert_kd.teacher.answer import Answering, Precision
from bert_kd.teacher.encoding import Encoded, Padding, batch, encode
from bert_kd.teacher.model import Teacher, load_base, open_teacher
from bert_kd.teacher.parts import encoder_layers, freeze
from bert_kd.teacher.prefix import Prefix, States, cache_states, needed_bytes

LENGTH = 128
"""What the usual loop pads to."""
USUAL_BATCH = 32
PADDED = f"padded to {LENGTH}"
USUAL = f"{PADDED}, fp32"
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65_536}
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
SHAPES = {
    "bert-base": {},
    "distilbert": {"num_hidden_layers": 6},
    "bert-tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
}
"""Sizes of BERT, as far as they are not those of BERT-base."""


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Return when the device has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_teacher(model: str, shape: str | None, labels: Sequence[str]) -> Teacher:
    """Return a teacher with a head that nobody trained, on the device; `shape` has random
    weights.
    """
    teacher = load_base(TeacherConfig(model=model, max_length=LENGTH), labels)
    found = teacher.model
    if shape is not None:
        torch.manual_seed(17)
        sizes: Any = {"vocab_size": len(teacher.tokenizer), "num_labels": len(labels)}
        found = BertForSequenceClassification(BertConfig(**sizes | SHAPES[shape]))
    torch.nn.Module.to(found, device())
    return Teacher(found, teacher.tokenizer, tuple(labels), LENGTH)


# --- logits ------------------------------------------------------------------------------------


class PaddedLoop:
    """The usual loop: batches in the order of the file, all padded to `LENGTH` or, with `longest`,
    to their own longest text.
    """

    def __init__(self, teacher: Teacher, precision: Precision, longest: bool = False) -> None:
        self.teacher, self.precision, self.longest = teacher, precision, longest

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return the logits [texts, classes]."""
        self.teacher.model.eval()  # type: ignore[no-untyped-call]
        found = []
        for start in range(0, len(texts), USUAL_BATCH):
            inputs: Any = self.teacher.tokenizer(
                texts[start : start + USUAL_BATCH],
                padding="longest" if self.longest else "max_length",
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            ).to(device())
            bf16 = self.precision == "bf16"
            with (
                torch.inference_mode(),
                torch.autocast(device().type, torch.bfloat16, enabled=bf16),
            ):
                logits: Tensor = self.teacher.model(**inputs).logits  # [batch, classes]
            found.append(logits.float().cpu().numpy())
        return np.concatenate(found)


def measure_logits(
    teacher: Teacher, texts: list[str], rounds: int, minutes: float | None
) -> tuple[list[Row], int]:
    """Return rows and real tokens a second of each way, compared with the usual one in fp32, the
    share of the measured matrix product, and how far the logits lie apart; and the rounds made.
    """
    budget = TOKENS_PER_BATCH[device().type]
    systems: dict[str, Callable[[list[str]], npt.NDArray[np.float32]]] = {
        USUAL: PaddedLoop(teacher, "fp32"),
        f"{PADDED}, bf16": PaddedLoop(teacher, "bf16"),
        "padded to the longest, fp32": PaddedLoop(teacher, "fp32", longest=True),
    }
    for precision in ("fp32", "bf16"):
        mine = Answering(teacher, precision, budget)
        systems[f"sorted, {precision}"] = lambda given, mine=mine: mine(given, None).logits
    logits: dict[str, npt.NDArray[np.float32]] = {}

    def turn(name: str) -> float:
        started = time.perf_counter()
        logits[name] = systems[name](texts)
        wait()
        return len(texts) / (time.perf_counter() - started)

    turns: dict[str, Callable[[], float]] = {name: lambda name=name: turn(name) for name in systems}
    turns["matmul fp32"] = lambda: matmul_rate(torch.float32)
    turns["matmul bf16"] = lambda: matmul_rate(torch.bfloat16)
    found = interleaved(turns, rounds, minutes=minutes, what="caching")
    rates = {name: found[name] for name in systems}
    rows = rate_rows(rates, "rows_per_second")
    encoded = encode(teacher.tokenizer, [(texts, None)], LENGTH)
    lengths = encoded.tokens.lengths
    tokens = float(lengths.mean())  # a text
    rows += rate_rows(
        {name: [tokens * rate for rate in rates[name]] for name in rates}, "tokens_per_second"
    )
    work = operations(teacher, lengths) / len(texts)  # a text
    for name in systems:
        peak = found["matmul " + name.rpartition(" ")[2]]
        shares = [rate * work / most for rate, most in zip(rates[name], peak, strict=True)]
        rows.append(fact_row(name, "share_of_matmul", statistics.median(shares)))
    for name in ("matmul fp32", "matmul bf16"):
        rows.append(fact_row(name, "operations_per_second", statistics.median(found[name])))
    return rows + distances(logits), rounds_made(found)


def distances(logits: dict[str, npt.NDArray[np.float32]]) -> list[Row]:
    """Return how far each system's logits lie from those of the usual loop."""
    rows, exact = [], logits[USUAL]
    for name, mine in logits.items():
        if name == USUAL:
            continue
        moved = np.abs(mine - exact)
        same = float((mine.argmax(axis=1) == exact.argmax(axis=1)).mean())
        rows.append(fact_row(name, "largest_difference", float(moved.max())))
        rows.append(fact_row(name, "mean_difference", float(moved.mean())))
        rows.append(fact_row(name, "same_class", same))
    rows.append(fact_row(USUAL, "deviation_of_logits", float(exact.std(axis=0).mean())))
    return rows


def operations(teacher: Teacher, lengths: Ints) -> float:
    """Return the operations (two a multiply-add) of the matrix products over texts of these
    lengths, padding not counted.
    """
    _, layers = encoder_layers(teacher.model)
    weights = sum(
        module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear)
    )
    hidden = int(teacher.model.config.hidden_size)
    attention = 4.0 * hidden * len(layers) * float((lengths.astype(np.float64) ** 2).sum())
    return 2.0 * weights * float(lengths.sum()) + attention


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the operations a second of a large square matrix product."""
    size = MATMUL_SIZE[device().type]
    left = torch.randn(size, size, device=device(), dtype=dtype)
    right = torch.randn(size, size, device=device(), dtype=dtype)
    torch.matmul(left, right)
    wait()
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        torch.matmul(left, right)
        wait()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best


# --- partial fine-tuning -----------------------------------------------------------------------


class Steps:
    """Training steps of a teacher whose last layers train, the states below them cached or not."""

    def __init__(
        self,
        teacher: Teacher,
        encoded: Encoded,
        gold: Ints,
        trained: int | str,
        folder: Path | None,
        batch_size: int,
    ) -> None:
        self.model, self.encoded, self.gold = teacher.model, encoded, torch.from_numpy(gold)
        self.padding = Padding.of(teacher.tokenizer)
        self.trained: Any = trained
        self.batch_size = batch_size
        self.prefix: Prefix | None = None
        self.states: States | None = None
        self.seconds_of_states = 0.0
        if folder is not None:
            self.prefix = Prefix(teacher.model, self.trained)
            started = time.perf_counter()
            parts = {"train": encoded}
            found = cache_states(self.prefix, parts, self.padding, folder, str(trained))
            self.states = found["train"]
            self.seconds_of_states = time.perf_counter() - started
        self.epoch = 0
        freeze(self.model, self.trained)
        self.learning = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-5)

    def __call__(self) -> float:
        """Train for one pass over the rows and return the seconds a step."""
        freeze(self.model, self.trained)
        self.epoch += 1
        generator = np.random.default_rng(self.epoch)
        batches = bucketed_batches(self.encoded.tokens.lengths, self.batch_size, generator)
        self.model.train()
        if self.prefix is not None:
            self.prefix.skip()
        started = time.perf_counter()
        for rows in batches:
            inputs = {
                name: value.to(device())
                for name, value in batch(self.encoded, rows, self.padding).items()
            }
            if self.prefix is not None and self.states is not None:
                self.prefix.give(self.states.padded(rows, self.padding).to(device()))
            logits = self.model(**inputs).logits
            gold = self.gold[torch.from_numpy(rows)].to(device())
            torch.nn.functional.cross_entropy(logits, gold).backward()
            torch.nn.utils.clip_grad_norm_(self.learning, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        wait()
        seconds = time.perf_counter() - started
        if self.prefix is not None:
            self.prefix.restore()
        return seconds / len(batches)


def measure_freezing(
    teacher: Teacher,
    texts: list[str],
    gold: Ints,
    batch_size: int,
    rounds: int,
    minutes: float | None,
) -> tuple[list[Row], int]:
    """Return milliseconds a step by trained layers, compared with training all, and what the states
    below them cost in time and on disk; and the rounds made.
    """
    encoded = encode(teacher.tokenizer, [(texts, None)], LENGTH)
    _, layers = encoder_layers(teacher.model)
    counts = [count for count in (len(layers), 6, 4, 3, 2, 1) if count <= len(layers)]
    counts = list(dict.fromkeys(counts))
    choices: list[int | str] = ["all", *counts, "head"]
    systems: dict[str, Steps] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as aside:
        for trained in choices:
            name = _trained_name(trained, len(layers))
            systems[name] = Steps(teacher, encoded, gold, trained, None, batch_size)
            if trained in ("all", len(layers)):
                continue
            folder = Path(aside) / str(trained)
            cached = f"{name}, states cached"
            systems[cached] = Steps(teacher, encoded, gold, trained, folder, batch_size)
        found = interleaved(dict(systems), rounds, minutes=minutes, what="training steps")
        milliseconds = {name: [1000 * value for value in found[name]] for name in found}
        rows += rate_rows(milliseconds, "milliseconds_a_step")
        steps = -(-len(texts) // batch_size)
        for name, system in systems.items():
            if system.prefix is None:
                continue
            epochs = system.seconds_of_states / (
                steps * statistics.median(found[name.removesuffix(", states cached")])
            )
            rows.append(fact_row(name, "states_cost_in_epochs", epochs))
            size = needed_bytes(system.prefix, [encoded]) / len(texts)
            rows.append(fact_row(name, "bytes_a_text", size))
    return rows, rounds_made(found)


def _trained_name(trained: int | str, layers: int) -> str:
    if trained == "all":
        return f"all {layers} layers and embeddings"
    if trained == "head":
        return "head alone"
    return "last layer" if trained == 1 else f"last {trained} layers"


# --- the command -------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options_parser(__doc__)
    parser.add_argument("--texts", type=int, default=1024, help="of train, drawn at random")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default="offline", help="offline, or a model's folder")
    parser.add_argument("--teacher", type=Path, help="a run's trained teacher, for its logits")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--batch-size", type=int, default=32, help="with --freezing")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--freezing", action="store_true", help="training steps, not caching")
    other.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="peak memory instead")
    return parse_rounds(parser, arguments, without_rounds=("memory",))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the benchmark's JSON."""
    if options.memory:
        made = facts(options, 1, benchmark="caching-memory")
        return result(made, caching_memory.measure(options.memory), rounds=None)
    name, folder = data_set(options.data, options.set, "sst2")
    split = read_split(folder, "train")
    chosen = np.random.default_rng(17).permutation(len(split))[: options.texts]
    texts, gold = [split.texts[row] for row in chosen], split.labels[chosen]
    labels = [str(label) for label in range(split.classes)]
    if options.teacher:
        teacher = open_teacher(options.teacher)
    else:
        teacher = make_teacher(options.model, options.shape, labels)
    lengths = encode(teacher.tokenizer, [(texts, None)], LENGTH).tokens.lengths
    made = facts(
        options,
        options.threads,
        benchmark="caching-freezing" if options.freezing else "caching",
        set=name,
        texts=len(texts),
        tokens_mean=float(lengths.mean()),
        model="a trained teacher" if options.teacher else options.shape or options.model,
        batch_size=options.batch_size if options.freezing else None,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )
    if options.freezing:
        rows, rounds = measure_freezing(
            teacher, texts, gold, options.batch_size, options.rounds, options.minutes
        )
    else:
        rows, rounds = measure_logits(teacher, texts, options.rounds, options.minutes)
    return result(made, rows, rounds)


def main() -> None:
    """Measure, print a line per value, and write the JSON file where asked."""
    options = parse()
    with user_errors(), torch_threads(options.threads):
        report(measure(options), options.json)


if __name__ == "__main__":
    main()
