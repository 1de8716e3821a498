"""`docs/speed.md` and its figures, from the JSON of the speed benchmarks.

    python benchmarks/speed_docs.py

No number is typed by hand but the goals: what stands there is what the files in
`benchmarks/results` hold, each section with the command, machine and commit that made it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speed_figures import draw
from speed_runs import REPOSITORY, Row, metrics_of, systems_of, user_errors, value_of

from bert_kd.errors import UserError
from bert_kd.evaluate.format import (
    NOTHING,
    count,
    latency,
    percent,
    points,
    significant,
    size,
    times,
)
from bert_kd.store import make_folder, read_json, write_text

Json = Mapping[str, Any]

INTRODUCTION = """# Speed

Written by `python benchmarks/speed_docs.py` from the tables in `benchmarks/results/`; no measured
number is typed by hand.

Systems whose times are compared took turns in the same run, unless a section says otherwise. Values
are medians over its rounds; a ratio is the median of the ratios within each round.
"""
FILES = (
    "inference",
    "training",
    "training-accuracy",
    "caching",
    "caching-memory",
    "caching-freezing",
)
"""The benchmarks, in the order of the page; a file of results begins with one of these names."""
GOALS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "BERT-base, torch": {"H = 256": (600, 1000), "H = 128": (1000, 4000)},
    "BERT-base, ONNX Runtime int8": {"H = 256": (100, 300), "H = 128": (190, 1000)},
    "DistilBERT, ONNX Runtime int8": {"H = 256": (50, 150), "H = 128": (95, 550)},
    "BERT-tiny, ONNX Runtime int8": {"H = 256": (4, 4), "H = 128": (7, 13)},
    "{student}, ONNX Runtime int8": {"H = 256": (6, 5), "H = 128": (11, 12)},
    "fastText unigrams": {"H = 256": (1 / 6, 0.3), "H = 128": (1 / 2.5, 0.9), "H = 64": (1, 1)},
}
"""How many times as fast the native int8 student is to be, at batch 1 and in bulk."""
TRIED = """Tried, and slower: fetching the next panel's weights ahead while the gates are computed;
they are read in order, and the core's own prefetcher is as quick. fastText is another kind of
model: it adds up one row of its table a token, where the recurrence has 16 · H² operations a token.
"""
TRAINING_GOAL = 4.5
CACHING_GOALS = {"sorted, fp32": 6.0, "sorted, bf16": 10.0}
KERNEL_GOAL, TOKENIZING_GOAL = 0.75, 4.0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, its first column of words, with a blank line behind."""
    if not rows:
        return []
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [*(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)), ""]


def threads(found: Json) -> str:
    """Return how many threads a benchmark ran in: `2 threads`."""
    number = found["machine"]["threads"]
    return f"{number} thread{'s' * (number != 1)}"


# --- inference ---------------------------------------------------------------------------------


def inference(found: Json) -> Iterator[str]:
    """Yield the lines of the section on inference."""
    rows, config = found["rows"], found["config"]
    yield "## Inference"
    yield ""
    yield (
        f"Raw text to probabilities; texts of {config['set']}, the long ones joined of several; "
        f"weights: {config['weights']}. {_threads_of(config)}"
    )
    yield ""
    reference = next(iter(config["systems"]))
    yield (
        "p50 and p99 are over the texts that a system answered one by one, all rounds together; "
        "slow systems have time for the first of them alone. *Times as fast, same texts*: the "
        f"median time of {reference} over the texts that both answered in a round, divided by the "
        "system's own median over these; then the median over rounds. It is not the quotient of "
        "the p50s, which are of different texts. In bulk *times as fast* is the median over rounds "
        f"of the system's rate divided by that of {reference}. *Timed*: texts one by one in all "
        f"{config['rounds']} rounds / in bulk in each (a dash: the run kept no count); of fewer "
        "than a hundred no p99 is told."
    )
    yield ""
    for case in metrics_of(rows, "texts_per_second"):
        kind, _, threads = case.partition(".threads")
        plural = "" if threads == "1" else "s"
        yield f"### {kind.capitalize()} texts, {threads} thread{plural}"
        yield ""
        yield f"{config['characters'][case]:.0f} characters a text on average."
        yield ""
        yield from table(
            [
                "system",
                "batch 1, p50",
                "p99",
                "times as fast, same texts",
                "texts a second in bulk",
                "times as fast",
                "timed",
            ],
            [_speed_cells(rows, case, name) for name in config["systems"]],
        )
        yield from _goals(rows, case)
    yield from _kernel(rows)
    yield from _where_time_goes(rows)
    yield from _processes(rows, config.get("process_rounds"))


def _threads_of(config: Json) -> str:
    """Return what keeps to the number of threads that a table is headed with."""
    of = config.get("threads_of")
    if of is None:
        return "Threads are those of the models: `tokenizers` cut lists of texts on all cores."
    return f"Threads are those of {', '.join(of[:-1])} and {of[-1]}."


def _speed_cells(rows: Sequence[Row], case: str, name: str) -> list[str]:
    def value(metric: str, key: str = "value") -> float | None:
        return value_of(rows, name, f"{case}.{metric}", key)

    single, bulk = value("single_texts"), value("bulk_texts")
    return [
        name,
        latency(value("latency_p50_us")),
        # Of nobody knows how many texts it is not told.
        NOTHING if single is None else latency(value("latency_p99_us")),
        times(value("latency_p50_us", "ratio")),
        count(value("texts_per_second")),
        times(value("texts_per_second", "ratio")),
        NOTHING if single is None or bulk is None else f"{single:,.0f} / {bulk:,.0f}",
    ]


def _goals(rows: Sequence[Row], case: str) -> Iterator[str]:
    """Yield the table of ratios beside their goals."""
    ratios = {
        (row["system"], row["metric"], row["ratio_to"]): row["ratio"]
        for row in rows
        if row["metric"] in (f"{case}.times_single", f"{case}.times_bulk")
    }
    lines = []
    for peer, goals in GOALS.items():
        for student, (single, bulk) in goals.items():
            cells = [f"{student} against {peer.format(student=student)}"]
            for metric, goal in (("times_single", single), ("times_bulk", bulk)):
                key = (f"{student}, native int8", f"{case}.{metric}", peer.format(student=student))
                ratio = ratios.get(key)
                cells += [times(ratio), f"≥ {significant(goal)}", _reached(ratio, goal)]
            if cells[1] != NOTHING:
                lines.append(cells)
    if lines and case.startswith("short"):
        header = ["times as fast, native int8", "same texts", "goal", "", "bulk", "goal", ""]
        yield from table(header, lines)


def _reached(value: float | None, goal: float, *, at_most: bool = False) -> str:
    if value is None:
        return NOTHING
    return "yes" if (value <= goal if at_most else value >= goal) else "no"


def _kernel(rows: Sequence[Row]) -> Iterator[str]:
    metric = "operations_per_second"
    names = systems_of(rows, metric)
    if names:
        yield "### The kernel and the core"
        yield ""
        yield (
            "Operations of the recurrence a second, from token ids to logits in bulk, one thread, "
            "beside the most multiply-adds that one core was measured to do in that precision. "
            f"Goal in int8 at H = 256: {percent(KERNEL_GOAL, 0)}%."
        )
        yield ""
        lines = []
        for name in sorted(names, key=lambda name: (not name.startswith("peak"), name)):
            rate = value_of(rows, name, metric)
            share = value_of(rows, name, "share_of_peak")
            shown = NOTHING if share is None else f"{percent(share)}%"
            lines.append([name, f"{significant((rate or 0) / 1e9)} G", shown])
        yield from table(["", "operations a second", "share of the peak"], lines)
    sizes = metrics_of(rows, "tokenizing_us")
    if sizes:
        yield f"Tokenizing in bulk, one thread, µs a text (goal: at most {TOKENIZING_GOAL:g}):"
        yield ""
        lines = []
        for name in sizes:
            found = [
                value_of(rows, way, f"{name}.tokenizing_us") for way in ("native", "tokenizers")
            ]
            lines.append([name, *map(significant, found)])
        yield from table(["vocabulary of", "native", "`tokenizers`"], lines)


def _where_time_goes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a text's time is made of, in bulk and alone, as far as it was measured."""
    names = systems_of(rows, "bulk_us.whole")
    if names:
        yield "### Where the time goes"
        yield ""
        yield (
            "Native int8, short texts, one thread, µs a text. Whole answers, "
            "tokenizing, the kernel and the least that it could take were measured in turns, in "
            "the same rounds; differences are taken within a round, and each cell is a median over "
            "rounds, so that a line need not add up. *Multiply-adds* is what the recurrence would "
            "take at the core's measured peak; *rest of the kernel* is what the kernel takes "
            "beyond that: gates and pooling (five exponentials a unit and token), rows of the "
            "folded embedding, blocks that texts do not fill. *Outside* is the whole answer less "
            "tokenizing and kernel, [lowest, highest] of the rounds: Python and probabilities, "
            "less what the parts cost as calls of their own. Where it spans 0 it is less than the "
            "noise."
        )
        yield ""
        header = ["whole", "tokenizing", "multiply-adds", "rest of the kernel", "outside"]
        lines = [_part_cells(rows, name, "bulk_us", "multiply_adds") for name in names]
        yield from table(["in bulk", *header], lines)
        yield (
            "A single text has no other text to share weights with: each token reads all of them, "
            "a direction after the other, from the core's second-level cache where those of a "
            "direction do not fit into the first. *Reading* is what that takes at the speed at "
            "which the core was measured to read so many bytes over and over. Of the same texts "
            "one by one; here each cell is the median text's, a difference that of a text."
        )
        yield ""
        header[2] = "reading"
        lines = [
            [*_part_cells(rows, name, "single_us", "reading"), _whole_size(rows, name)]
            for name in names
        ]
        yield from table(["batch 1", *header, "weights, a direction"], lines)
    elif systems_of(rows, "operations_per_second"):
        yield "### Where the time goes"
        yield ""
        yield (
            "Not told: in the run behind this page whole answers and their parts were measured "
            "minutes apart, and the difference would be how the machine changed meanwhile. "
            "`benchmarks/inference.py` now measures them in the same rounds."
        )
        yield ""
    if systems_of(rows, "operations_per_second"):
        yield TRIED


def _part_cells(rows: Sequence[Row], name: str, manner: str, least: str) -> list[str]:
    """Return the cells of whole answers, their parts, and the range of what is outside."""
    cells = [
        _signed(value_of(rows, name, f"{manner}.{part}"))
        for part in ("whole", "tokenizing", least, "rest", "outside", "outside_low", "outside_high")
    ]
    *shown, low, high = cells
    shown[-1] += f" [{low}, {high}]"
    return [name, *shown]


def _signed(value: float | None) -> str:
    """Return a value with one decimal, below 0 too."""
    return NOTHING if value is None else f"{value:.1f}".replace("-", "−")


def _whole_size(rows: Sequence[Row], name: str) -> str:
    held = value_of(rows, name, "recurrent_bytes")
    return size(None if held is None else int(held))


def _processes(rows: Sequence[Row], rounds: int | None) -> Iterator[str]:
    """Yield the section on processes, which took turns in so many rounds (None: in none)."""
    names = systems_of(rows, "ready_seconds")
    if not names:
        return
    yield "### Memory and time to load"
    yield ""
    turns = (
        "those of a system ran one after the other, not in turns with those of others"
        if rounds is None
        else f"{rounds} round{'s' * (rounds != 1)}, after one that is not counted"
    )
    yield (
        f"A process of its own for each system and round ({turns}); ready: with the import of all "
        "that it needs."
    )
    yield ""
    lines = []
    for name in names:
        memory = value_of(rows, name, "resident_bytes")
        seconds = [value_of(rows, name, metric) for metric in ("ready_seconds", "open_seconds")]
        shown = [latency(None if value is None else 1e6 * value) for value in seconds]
        lines.append([name, size(None if memory is None else int(memory)), *shown])
    yield from table(["system", "memory", "ready after", "opened again"], lines)


# --- training ----------------------------------------------------------------------------------


def training(found: Json) -> Iterator[str]:
    """Yield the lines of the section on the student's training."""
    rows, config = found["rows"], found["config"]
    sizes = metrics_of(rows, "examples_per_second")
    yield "## Training the student"
    yield ""
    words = [
        f"H = {name[1:]}: {config['sizes'][name]['vocabulary']:,} entries of "
        f"{config['sizes'][name]['embedding']} values"
        for name in sizes
    ]
    yield (
        f"Examples a second over {config['rows']:,} texts of {config['set']} "
        f"({significant(config['sizes'][sizes[0]]['tokens_mean'])} tokens on average), batches of "
        f"{config['batch_size']}, {threads(found)}; {'; '.join(words)}. Each row down to bf16 has "
        "one part more than the row above it; deferred: the embedding's gradient is sparse, and "
        "AdamW moves a row when a batch reads it, by all the steps that it has missed "
        "(`bert_kd/student/optimizer.py`). Goal of the "
        f"package's loop at H = 256: {TRAINING_GOAL:g}×."
    )
    yield ""
    lines = []
    for name in systems_of(rows, f"{sizes[0]}.examples_per_second"):
        cells = [name]
        for hidden in sizes:
            metric = f"{hidden}.examples_per_second"
            cells += [count(value_of(rows, name, metric))]
            cells += [times(value_of(rows, name, metric, "ratio"))]
        lines.append(cells)
    header = [cell for hidden in sizes for cell in (f"H = {hidden[1:]}", "")]
    yield from table(["", *header], lines)


def training_accuracy(found: Json) -> Iterator[str]:
    """Yield the lines of the section on accuracy."""
    rows, config = found["rows"], found["config"]
    precisions = config.get("precision")  # a run of before had not timed the loops alike
    yield "### Accuracy of both loops"
    yield ""
    yield (
        f"Gold labels of {config['set']}, {config['epochs']} epochs, {config['seeds']} seeds, "
        f"{threads(found)}; accuracy over the rows of validation, test and a part of train that "
        "was held out; both loops choose the epoch that they keep on validation, by the same rule; "
        + (
            "over seeds, accuracies are means and seconds, of the whole training, medians; "
            + ", ".join(f"{name} in {precision}" for name, precision in precisions.items())
            + "."
            if precisions
            else "accuracies are means over seeds."
        )
    )
    yield ""
    for hidden in metrics_of(rows, "accuracy"):
        lines = []
        for name in systems_of(rows, f"{hidden}.accuracy"):
            accuracy = value_of(rows, name, f"{hidden}.accuracy")
            seconds = significant(value_of(rows, name, f"{hidden}.seconds"))
            lines.append([name, percent(accuracy), *([seconds] if precisions else [])])
        heads = [f"H = {hidden[1:]}", "accuracy, %", *(["seconds"] if precisions else [])]
        yield from table(heads, lines)
        package = lines[-1][0]
        value, low, high = (
            points(value_of(rows, package, f"{hidden}.accuracy_difference_{part}"))
            for part in ("value", "low", "high")
        )
        judged = value_of(rows, package, f"{hidden}.judged_rows")
        yield (
            f"Difference in points, before rounding: {value} [{low}, {high}], 95% of a bootstrap "
            f"that draws the {judged:,} rows, the same for both, and seeds."
        )
        yield ""


# --- caching -----------------------------------------------------------------------------------


def caching(found: Json) -> Iterator[str]:
    """Yield the lines of the section on caching logits."""
    rows, config = found["rows"], found["config"]
    yield "## Caching the teacher's logits"
    yield ""
    goals = ", ".join(f"{name} {goal:g}×" for name, goal in CACHING_GOALS.items())
    yield (
        f"{config['texts']:,} texts of {config['set']} ({significant(config['tokens_mean'])} "
        f"wordpieces on average), model: {config['model']}, on {config['device']}, "
        f"{threads(found)}. Tokens are real ones. The last column is the share of a large matrix "
        "product's rate in that precision. "
        f"Goals: {goals}."
    )
    yield ""
    lines = []
    for name in systems_of(rows, "rows_per_second"):
        share = value_of(rows, name, "share_of_matmul")
        lines.append(
            [
                name,
                count(value_of(rows, name, "rows_per_second")),
                times(value_of(rows, name, "rows_per_second", "ratio")),
                count(value_of(rows, name, "tokens_per_second")),
                f"{percent(share)}%",
            ]
        )
    yield from table(["", "rows/s", "", "tokens/s", "of matmul"], lines)
    spread = next(row["value"] for row in rows if row["metric"] == "deviation_of_logits")
    yield (
        f"Differences in a logit from the first row, whose logits have a deviation of "
        f"{significant(spread)} over the texts:"
    )
    yield ""
    lines = [
        [
            name,
            _small(value_of(rows, name, "mean_difference")),
            _small(value_of(rows, name, "largest_difference")),
            f"{percent(value_of(rows, name, 'same_class'), 2)}%",
        ]
        for name in systems_of(rows, "mean_difference")
    ]
    yield from table(["", "mean", "largest", "same class"], lines)


def _small(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"


def caching_memory(found: Json) -> Iterator[str]:
    """Yield the lines of the section on memory."""
    rows = found["rows"]
    yield "### Memory"
    yield ""
    yield "Synthetic rows, a small model; a process each. Of each distinct row its key is held."
    yield ""
    lines = [
        [
            name,
            *(
                size(int(value_of(rows, name, metric) or 0))
                for metric in ("bytes_before", "peak_bytes")
            ),
            f"{significant(value_of(rows, name, 'bytes_a_row'))} B",
        ]
        for name in systems_of(rows, "peak_bytes")
    ]
    yield from table(["", "before", "peak", "growth a row"], lines)


def caching_freezing(found: Json) -> Iterator[str]:
    """Yield the lines of the section on partial fine-tuning."""
    rows, config = found["rows"], found["config"]
    yield "## Partial fine-tuning of the teacher"
    yield ""
    yield (
        f"A training step of {config['batch_size']} texts of {config['set']}, model: "
        f"{config['model']}, on {config['device']}, {threads(found)}. The states below the "
        "trained layers (`teacher.cache_prefix`) are computed once, which costs as much as the "
        "given number of epochs without them, and take the given room."
    )
    yield ""
    lines = []
    for name in systems_of(rows, "milliseconds_a_step"):
        cost = value_of(rows, name, "states_cost_in_epochs")
        room = value_of(rows, name, "bytes_a_text")
        lines.append(
            [
                name,
                f"{significant(value_of(rows, name, 'milliseconds_a_step'))} ms",
                times(value_of(rows, name, "milliseconds_a_step", "ratio")),
                significant(cost),
                NOTHING if room is None else f"{size(int(room))} a text",
            ]
        )
    yield from table(["trained", "a step", "time", "cost, epochs", "room"], lines)


# --- the document ------------------------------------------------------------------------------

SECTIONS: Mapping[str, Callable[[Json], Iterator[str]]] = {
    "inference": inference,
    "training": training,
    "training-accuracy": training_accuracy,
    "caching": caching,
    "caching-memory": caching_memory,
    "caching-freezing": caching_freezing,
}


def write_docs(results: Path, page: Path) -> None:
    """Write the page and its figures (in the folder `speed` beside it) from what lies in
    `results`.

    Raises UserError where there is nothing.
    """
    lines = [INTRODUCTION]
    for kind in FILES:
        for file in sorted(results.glob(f"{kind}*.json")):
            found = read_json(file)
            if found["config"].get("benchmark") != kind:
                continue
            lines += SECTIONS[kind](found)
            figure = draw(found)
            if figure is not None:
                make_folder(page.parent / "speed")
                write_text(page.parent / "speed" / f"{file.stem}.svg", figure[0])
                lines += [f"![{figure[1]}](speed/{file.stem}.svg)", ""]
            lines += [provenance(found), ""]
    if len(lines) == 1:
        raise UserError(
            f"{results} holds none of {', '.join(f'{kind}.json' for kind in FILES)}: make them "
            "with benchmarks/inference.py, training.py and caching.py first"
        )
    make_folder(page.parent)
    write_text(page, "\n".join(lines).rstrip() + "\n")


def provenance(found: Json) -> str:
    """Return what made a section: command, machine, versions, commit."""
    config, machine = found["config"], found["machine"]
    names = ("torch", "transformers", "onnxruntime")
    software = [
        f"{name} {config['versions'][name]}" for name in names if name in config["versions"]
    ]
    memory = machine["memory_gib"]
    words = [
        f"{machine['cpu']}, {machine['cores']} cores",
        *([f"{significant(memory)} GiB"] if memory else []),
        f"load {significant(machine['busy'])}",
        f"Python {machine['python']}",
        *software,
    ]
    made = config["made"].partition("T")[0]
    commit = (config["commit"] or "unknown")[:10]
    return f"`{config['command']}`; {', '.join(words)}; commit {commit}, {made}."


def main() -> None:
    """Write the page."""
    with user_errors():
        write_docs(REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "speed.md")
        sys.stdout.write("docs/speed.md is written\n")


if __name__ == "__main__":
    main()
