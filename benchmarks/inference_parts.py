"""What the time of a student's native answers is made of, beside what the core can do at most.

Here: the kernel's share of the core's peak, tokenizing natively and by `tokenizers`, and whole
answers beside their parts. All in one thread. Not here: other systems (`inference.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import inference_make as make
import numpy as np
import numpy.typing as npt
from inference_systems import Spec, open_system
from speed_runs import Row, fact_row, interleaved, rate_rows, tokenizing_threads

from bert_kd.data.batches import encode
from bert_kd.progress import say
from bert_kd.runtime.bundle import read_bundle
from bert_kd.runtime.engine import read_tokenizer
from bert_kd.runtime.native import engine as native

Floats = npt.NDArray[np.float64]

SINGLES = 256
"""Texts whose parts are timed one by one."""
LEAST = {"bulk_us": "multiply_adds", "single_us": "reading"}
"""What bounds the kernel from below when all texts are answered in one call, and one by one."""


def measure_kernel(specs: Mapping[str, Spec], texts: list[str], rounds: int) -> list[Row]:
    """Return what one core can do at most by precision, and each student's kernel beside it:
    operations of the recurrence a second, from token ids to logits in bulk.
    """
    if native.missing():
        return []
    from bert_kd.runtime.native import _native

    turns: dict[str, Callable[[], float]] = {
        f"peak {precision}": partial(_native.measure_peak, precision)
        for precision in make.PRECISIONS
    }
    peaks = list(turns)
    for name, spec in specs.items():
        if spec.kind != "native":
            continue
        bundle = read_bundle(spec.path)
        tokenizer = read_tokenizer(spec.path / "tokenizer.json", int(bundle.shape["vocabulary"]))
        tokens = encode(tokenizer, texts)
        model = _native.Model(str(spec.path / "native.safetensors"))
        work = _operations(int(bundle.shape["hidden"]), len(tokens.ids))

        def turn(model: Any = model, tokens: Any = tokens, work: float = work) -> float:
            started = time.perf_counter()
            model.logits(tokens.ids, tokens.offsets)
            return work / (time.perf_counter() - started)

        turns[name] = turn
    found = interleaved(turns, rounds, what="kernel")
    highest = {name: found[name] for name in peaks}
    rows = rate_rows(highest, "operations_per_second", peaks[0])
    for name in [name for name in found if name not in highest]:
        peak = found[f"peak {name.rpartition(' ')[2]}"]
        shares = [mine / most for mine, most in zip(found[name], peak, strict=True)]
        rows.append(fact_row(name, "operations_per_second", statistics.median(found[name])))
        rows.append(fact_row(name, "share_of_peak", statistics.median(shares)))
    return rows


def _operations(hidden: int, tokens: int) -> float:
    """Return the operations of both directions' recurrences for so many tokens: 8 · H² a token and
    direction, two a multiply-add.
    """
    return 2 * 8.0 * hidden**2 * tokens


def measure_tokenizing(specs: Mapping[str, Spec], texts: list[str], rounds: int) -> list[Row]:
    """Return microseconds a text of tokenizing in bulk, natively and by `tokenizers`, for each
    student's vocabulary.
    """
    rows: list[Row] = []
    for system, spec in _native_int8(specs):
        size = int(read_bundle(spec.path).shape["vocabulary"])
        usual = read_tokenizer(spec.path / "tokenizer.json", size)
        ways: dict[str, Callable[[], object]] = {"tokenizers": partial(encode, usual, texts)}
        compiled = _native_tokenizer(spec.path)
        if compiled is not None:
            ways["native"] = partial(compiled.encode, texts)
        turns = {name: partial(_microseconds, way, len(texts)) for name, way in ways.items()}
        with tokenizing_threads(1):
            found = interleaved(turns, rounds, what="tokenizing")
        rows += rate_rows(found, f"{system.partition(',')[0]}.tokenizing_us", "tokenizers")
    return rows


def measure_parts(specs: Mapping[str, Spec], texts: list[str], rounds: int) -> list[Row]:
    """Return what answers of each student in int8 are made of, in microseconds a text: all texts in
    one call (`bulk_us`), and one by one (`single_us`, medians over texts, which a text that was
    interrupted does not move).

    The `whole` answers, `tokenizing`, the `kernel` (ids to logits) and the least that it could take
    are measured in turns. That is in bulk the recurrence's `multiply_adds` at the core's peak; for
    a text on its own `reading` the recurrent weights, again and again for every token. The `rest`
    of the kernel and what is `outside` tokenizing and kernel are differences of the same text in
    the same round; of the latter the lowest and highest round is told as well. They may be below 0,
    since a machine's speed changes within a round, too, and the parts are calls of their own.
    """
    rows: list[Row] = []
    for name, spec in _native_int8(specs):
        compiled = _native_tokenizer(spec.path)
        if compiled is None:
            continue
        handed_back = set(compiled.encode(texts)[2])
        certain = [text for row, text in enumerate(texts) if row not in handed_back]
        manners = {"bulk_us": [certain], "single_us": [[text] for text in certain[:SINGLES]]}
        turns = {
            f"{manner}.{part}": turn
            for manner, calls in manners.items()
            for part, turn in _parts(spec, compiled, calls, LEAST[manner]).items()
        }
        with tokenizing_threads(1):
            found = interleaved(turns, rounds, what=f"parts of {name}")
        rows.append(fact_row(name, "recurrent_bytes", _recurrent_bytes(spec)))
        for manner in manners:
            rows += _part_rows(name, manner, found)
    return rows


def _recurrent_bytes(spec: Spec) -> int:
    """Return the bytes of one direction's recurrent weights in int8."""
    return 4 * int(read_bundle(spec.path).shape["hidden"]) ** 2


def _parts(
    spec: Spec, compiled: Any, calls: Sequence[list[str]], least: str
) -> dict[str, Callable[[], Floats]]:
    """Return turns that each do a part of the answers to these calls and return what that took by
    call, in microseconds a text; of `least`, what it would take at the speed that the core is
    measured at.
    """
    from bert_kd.runtime.native import _native

    model = _native.Model(str(spec.path / "native.safetensors"))
    texts = np.array([len(call) for call in calls])
    tokens = [compiled.encode(call)[:2] for call in calls]
    given = [(call,) for call in calls]
    turns: dict[str, Callable[[], Floats]] = {
        "whole": partial(_times, open_system(spec, threads=1), given, texts),
        "tokenizing": partial(_times, compiled.encode, given, texts),
        "kernel": partial(_times, model.logits, tokens, texts),
    }
    tokens_a_text = np.array([len(ids) for ids, _ in tokens]) / texts
    held, hidden = _recurrent_bytes(spec), int(read_bundle(spec.path).shape["hidden"])
    if least == "reading":
        read = 1e6 * 2 * held * tokens_a_text  # of both directions
        return turns | {least: lambda: read / _native.measure_reading("int8", held)}
    work = 1e6 * _operations(hidden, 1) * tokens_a_text
    return turns | {least: lambda: work / _native.measure_peak("int8")}


def _times(work: Callable[..., object], calls: Sequence[tuple[Any, ...]], texts: Floats) -> Floats:
    """Return microseconds a text of each call, [calls]."""
    seconds = np.empty(len(calls))
    for place, call in enumerate(calls):
        started = time.perf_counter()
        work(*call)
        seconds[place] = time.perf_counter() - started
    return 1e6 * seconds / texts


def _part_rows(name: str, manner: str, found: Mapping[str, Sequence[Floats]]) -> Iterator[Row]:
    """Yield the medians of the parts over texts and then rounds, and those of the differences."""
    names = ("whole", "tokenizing", "kernel", LEAST[manner])
    parts = {part: np.stack(found[f"{manner}.{part}"]) for part in names}  # [rounds, calls]
    whole, tokenizing, kernel, least = parts.values()
    parts |= {"rest": kernel - least, "outside": whole - tokenizing - kernel}
    by_round = {part: np.median(values, axis=1) for part, values in parts.items()}
    for part, values in by_round.items():
        yield fact_row(name, f"{manner}.{part}", float(np.median(values)))
    outside = by_round["outside"]
    yield fact_row(name, f"{manner}.outside_low", float(outside.min()))
    yield fact_row(name, f"{manner}.outside_high", float(outside.max()))


def _native_int8(specs: Mapping[str, Spec]) -> Iterator[tuple[str, Spec]]:
    for name, spec in specs.items():
        if spec.kind == "native" and name.endswith("int8"):
            yield name, spec


def _microseconds(work: Callable[[], object], texts: int) -> float:
    """Return what `work` takes a text."""
    started = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - started) / texts


def _native_tokenizer(bundle: Path) -> Any:
    if native.missing():
        return None
    from bert_kd.runtime.native.tokenizer import UnsupportedTokenizer, compile_tokenizer

    try:
        return compile_tokenizer((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    except UnsupportedTokenizer as error:
        say(f"its tokenizer is not measured: {error}")
        return None
