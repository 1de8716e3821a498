"""`bert-kd logits stats | verify | import | export`: the work on a logit cache itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bert_kd.cli_output import AsJson, print_result
from bert_kd.errors import CacheError, ConfigError
from bert_kd.store import RunFolder

app = typer.Typer(help="Look at, check, bring in and hand out a logit cache.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a logit cache.")]
Kind = Literal["logits", "probabilities"]


@app.command("stats")
def stats(folder: Folder, as_json: AsJson = False) -> None:
    """Rows, shards, bytes, spread of the logits, how often each label wins."""
    from bert_kd.logits.cache import LogitCache

    found = LogitCache.open(folder).stats()
    manifest = found.manifest
    lines = [
        f"teacher: {manifest.teacher} ({manifest.kind}, {manifest.precision})",
        f"rows: {found.rows:,} ({found.keys:,} distinct), {found.shards:,} shards, "
        f"{found.bytes / 2**20:,.1f} MiB",
        f"logits: mean {found.mean:.3f}, deviation {found.deviation:.3f}, "
        f"from {found.minimum:.3f} to {found.maximum:.3f}",
        *(f"  {label}: {share:.1%}" for label, share in found.shares.items()),
        *(f"damaged, set aside: {name}" for name in found.damaged),
    ]
    print_result(found, as_json, lines)


@app.command("verify")
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read every page; set damaged shards aside (exit status 2 where there are any)."""
    from bert_kd.logits.cache import LogitCache

    found = LogitCache.open(folder).verify()
    lines = [
        f"{found.shards:,} shards, {found.rows:,} rows, {found.keys:,} distinct keys",
        f"{found.duplicates:,} repeated, {found.disagreeing:,} of them with other answers "
        f"(largest difference {found.largest_difference:.3g})",
        *(f"removed: {name}" for name in found.leftovers),
    ]
    print_result(found, as_json, lines)
    if found.damaged:
        named = "; ".join(f"{damage.shard} ({damage.reason})" for damage in found.damaged)
        raise CacheError(
            f"damaged and set aside: {named}. Run cache-logits again: only their rows are computed"
        )


@app.command("import")
def import_(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet with texts and answers.")],
    run: Annotated[
        Path | None, typer.Option(help="Run folder whose label names and order hold.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label names in order, separated by commas.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What the file holds.")] = "logits",
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the labels, by commas, or one with lists; else by name."),
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    text_b: Annotated[str | None, typer.Option(help="Column of the second text.")] = None,
    name: Annotated[str | None, typer.Option(help="Name that tells this teacher apart.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring in the answers of a black-box teacher, joined by text."""
    from bert_kd.logits.exchange import import_answers

    given = columns.split(",") if columns is not None and "," in columns else columns
    done = import_answers(
        folder,
        file,
        labels=_labels(run, labels),
        kind=kind,
        columns=given,
        text=text,
        text_b=text_b,
        name=name,
    )
    lines = [
        f"{done.rows:,} rows: {done.stored:,} stored, {done.repeated:,} known already "
        f"({done.different:,} with another answer) in {done.folder}"
    ]
    print_result(done, as_json, lines)


@app.command("export")
def export(
    folder: Folder,
    output: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet file to write.")],
    run: Annotated[Path, typer.Option(help="Run folder whose texts are written beside.")],
    split: Annotated[str, typer.Option(help="train, validation, test or transfer.")] = "train",
    kind: Annotated[Kind, typer.Option(help="What is written.")] = "logits",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out rows without an answer.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hand out a prepared split's texts with the cached answers."""
    from bert_kd.data.prepare import load_prepared
    from bert_kd.logits.exchange import export_answers

    places = RunFolder(run)
    prepared = load_prepared(places)
    if split not in prepared.rows:
        raise ConfigError(f"{run} has no split '{split}': {', '.join(prepared.rows)}")
    done = export_answers(
        folder,
        places.split(split),
        output,
        labels=prepared.labels,
        values=kind,
        missing="skip" if skip_missing else "refuse",
    )
    lines = [f"{done.rows:,} rows written, {done.skipped:,} skipped: {done.output}"]
    print_result(done, as_json, lines)


def _labels(run: Path | None, labels: str | None) -> tuple[str, ...]:
    """Return label names in order, from a run folder or from the command line."""
    from bert_kd.data.prepare import load_prepared

    if (run is None) == (labels is None):
        raise ConfigError("give the label names: either --run DIR or --labels a,b,c")
    if run is not None:
        return load_prepared(RunFolder(run)).labels
    assert labels is not None
    return tuple(name.strip() for name in labels.split(","))
