"""`bert-kd …`: argument parsing over `stages.py`, and the one place that shows errors.

Results go to standard output (as JSON with `--json`), progress and messages to standard error. Exit
status: 0 done, 2 what the user can fix, 1 a bug (with its traceback), 130 interrupted. Nothing
heavy is imported before a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from bert_kd import cli_logits, cli_serve, stages
from bert_kd.cli_output import AsJson, print_out, print_result
from bert_kd.config import Config
from bert_kd.config_file import load_config
from bert_kd.errors import ConfigError, UserError, nearest
from bert_kd.progress import say
from bert_kd.standing import Wishes
from bert_kd.store import RunFolder

app = typer.Typer(
    name="bert-kd",
    help="Distil a fine-tuned BERT text classifier into a fast BiLSTM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_logits.app, name="logits", rich_help_panel="Logit cache")

INTERRUPTED = 130

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file (or a stage's stage.json).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides: section.key=value ...", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Make the output again.")]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STAGE", help="Go on with this stage's output though its settings or input changed."
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/] {_escape(str(error))}", highlight=False
        )
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            say("interrupted: run the same command again to go on")
        raise


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _wishes(force: Sequence[str], keep: Sequence[str] | None) -> Wishes:
    forced = frozenset(_stage(name) for name in force)
    if "cache-logits" in forced:
        raise ConfigError(
            "cached logits are never made again: what is there is the teacher's answer. Remove the "
            "cache's folder where it has to go"
        )
    kept = frozenset(_stage(name, stages.KEEPABLE) for name in keep or ())
    return Wishes(forced, kept)


def _stage(name: str, known: Sequence[str] = stages.STAGES) -> str:
    if name not in known:
        raise ConfigError(
            f"'{name}' is none of the stages {', '.join(known)}{nearest(name, known)}"
        )
    return name


def _part(text: str) -> tuple[int, int]:
    """Read `i/n`, 1 ≤ i ≤ n."""
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise ConfigError(f"--part {text!r}: expected i/n with 1 ≤ i ≤ n, such as 2/4")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from bert_kd import __version__

        print_out(__version__)
        raise typer.Exit


@app.command("prepare-data", rich_help_panel="Stages")
def prepare_data(
    overrides: Overrides = None,
    config: ConfigFile = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """01: read and check labelled text, write data/."""
    prepared = stages.prepare_data(
        load_config(config, overrides or ()), _wishes(["prepare-data"] if force else [], None)
    )
    rows = ", ".join(f"{name} {count:,}" for name, count in prepared.rows.items())
    print_result(prepared, as_json, [f"rows: {rows}", f"labels: {', '.join(prepared.labels)}"])


@app.command("train-teacher", rich_help_panel="Stages")
def train_teacher(
    overrides: Overrides = None,
    config: ConfigFile = None,
    force: Force = False,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """02: fine-tune the last layers of a BERT, write teacher/."""
    settings = load_config(config, overrides or ())
    facts = stages.train_teacher(settings, _wishes(["train-teacher"] if force else [], keep))
    linear, members = settings.teacher.linear, settings.teacher.ensemble
    folders = () if linear else RunFolder(settings.run).teachers(members)
    print_result(facts, as_json, [f"teacher: {folder}" for folder in folders])


@app.command("cache-logits", rich_help_panel="Stages")
def cache_logits(
    overrides: Overrides = None,
    config: ConfigFile = None,
    keep: Keep = None,
    part: Annotated[str, typer.Option(help="This writer's share, i/n, of n writers.")] = "1/1",
    as_json: AsJson = False,
) -> None:
    """03: let the teacher answer every row once, write logits/."""
    filled = stages.cache_logits(
        load_config(config, overrides or ()), _wishes([], keep), _part(part)
    )
    lines = [
        f"{filled.rows:,} rows: {filled.computed:,} computed, {filled.reused:,} reused, "
        f"{filled.shards:,} shards in {filled.folder}"
    ]
    print_result(filled, as_json, lines)


@app.command("train-students", rich_help_panel="Stages")
def train_students(
    overrides: Overrides = None,
    config: ConfigFile = None,
    force: Force = False,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """04: train all students and their twins from the cache, write students/."""
    metrics = stages.train_students(
        load_config(config, overrides or ()), _wishes(["train-students"] if force else [], keep)
    )
    lines = [
        f"{name}: validation accuracy {facts['validation_accuracy']:.4f}, macro-F1 "
        f"{facts['validation_macro_f1']:.4f} (epoch {facts['best_epoch']} of {facts['epochs']})"
        for name, facts in metrics.items()
    ]
    print_result(metrics, as_json, lines)


@app.command("evaluate", rich_help_panel="Stages")
def evaluate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    force: Force = False,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """05: measure teacher, students and twins, write report/."""
    settings = load_config(config, overrides or ())
    report = stages.evaluate(settings, _wishes(["evaluate"] if force else [], keep))
    _show_report(settings, report, as_json)


def _show_report(settings: Config, report: Any, as_json: bool) -> None:
    from bert_kd.evaluate.report import results_table

    if as_json:
        print_out((settings.run / "report" / "report.json").read_text(encoding="utf-8"))
        return
    console = Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
    console.print(results_table(report))
    print_out(f"report: {settings.run / 'report' / 'index.html'}")


@app.command("export", rich_help_panel="Stages")
def export(
    overrides: Overrides = None,
    config: ConfigFile = None,
    force: Force = False,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """06: write each student's best seed as a bundle, bundles/<name>."""
    settings = load_config(config, overrides or ())
    bundles = stages.export(settings, _wishes(["export"] if force else [], keep))
    lines = [f"bundle: {settings.run / 'bundles' / student.name}" for student in settings.students]
    print_result(bundles, as_json, lines)


@app.command("untrained-bert", rich_help_panel="Stages")
def untrained_bert(
    folder: Annotated[Path, typer.Argument(help="Folder to write, for teacher.model.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    layers: Annotated[int, typer.Option(help="Encoder layers.", min=1)] = 2,
    hidden_size: Annotated[int, typer.Option(help="Units a layer.", min=16)] = 128,
    vocabulary: Annotated[int, typer.Option(help="WordPiece entries at most.", min=100)] = 8000,
) -> None:
    """A small BERT of random weights, with a WordPiece of the prepared texts."""
    if folder.exists():
        raise ConfigError(f"{folder} exists: give the name of a new folder")
    stages.write_untrained_bert(
        load_config(config, overrides or ()), folder, layers, hidden_size, vocabulary
    )
    print_out(f"model: {folder}")


@app.command("run", rich_help_panel="Stages")
def run(
    overrides: Overrides = None,
    config: ConfigFile = None,
    first: Annotated[str, typer.Option("--from", help="First stage.")] = stages.STAGES[0],
    last: Annotated[str, typer.Option("--until", help="Last stage.")] = stages.STAGES[-1],
    force: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Make this stage's output again.")
    ] = None,
    keep: Keep = None,
) -> None:
    """01 to 06 in sequence; what is current is not made again."""
    settings = load_config(config, overrides or ())
    first, last = _stage(first), _stage(last)
    if stages.STAGES.index(first) > stages.STAGES.index(last):
        raise ConfigError(f"--from {first} comes after --until {last}")
    results = stages.run_stages(settings, first, last, _wishes(force or [], keep))
    if "evaluate" in results:
        _show_report(settings, results["evaluate"], as_json=False)
    if "export" in results:
        for student in settings.students:
            print_out(f"bundle: {settings.run / 'bundles' / student.name}")


Bundle = Annotated[Path, typer.Option("--bundle", "-b", help="Folder of an exported student.")]
Engine = Annotated[
    Literal["auto", "native", "onnx"], typer.Option(help="What computes the answers.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; none given: all.", min=1)]


@app.command("predict", rich_help_panel="Using a student")
def predict(
    bundle: Bundle,
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="CSV, TSV, JSONL or Parquet file.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, of any of these kinds.")
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="Answer this text on standard output.")
    ] = None,
    texts_b: Annotated[
        list[str] | None, typer.Option("--text-b", help="Its second text, for pairs.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    column_b: Annotated[str, typer.Option(help="Column of the second text.")] = "text_b",
    top_k: Annotated[int, typer.Option(help="Labels shown for --text; 0: all.", min=0)] = 3,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also a column per class in OUTPUT.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing OUTPUT.")
    ] = False,
    engine: Engine = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Label the rows of a file, or single texts."""
    from bert_kd.runtime.predictor import load

    if texts and source is None:
        _answer(load(bundle, engine, threads), texts, texts_b, top_k, as_json)
        return
    if texts or source is None or output is None:
        raise ConfigError("give INPUT and --output FILE, or --text TEXT (once or more)")
    from bert_kd.runtime.bulk import predict_file

    predictor = load(bundle, engine, threads)
    done = predict_file(
        predictor,
        source,
        output,
        text=column,
        text_b=column_b if predictor.pair else None,
        probabilities=probabilities,
        overwrite=overwrite,
    )
    before = f" ({done.resumed:,} answered before)" if done.resumed else ""
    print_result(
        done,
        as_json,
        [f"{done.rows:,} rows{before}, {done.rows_per_second:,.0f} rows/s: {output}"],
    )


def _answer(
    classify: Any, texts: list[str], texts_b: list[str] | None, top_k: int, as_json: bool
) -> None:
    if texts_b is not None and len(texts_b) != len(texts):
        raise ConfigError(f"{len(texts)} × --text but {len(texts_b)} × --text-b")
    inputs: Any = texts
    if texts_b is not None:
        inputs = [{"text": a, "text_pair": b} for a, b in zip(texts, texts_b, strict=True)]
    answers = classify(inputs, top_k=top_k or None)
    lines = []
    for text, found in zip(texts, answers, strict=True):
        shown = ", ".join(f"{answer['label']} {answer['score']:.3f}" for answer in found)
        lines.append(f"{text}\n  → {shown}")
    print_result(answers, as_json, lines)


app.command("serve", rich_help_panel="Using a student")(cli_serve.serve)
