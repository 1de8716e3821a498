"""The model card of a bundle: its README.md, for whoever finds the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_kd.runtime.bundle import Bundle, Runtime

_TEXT = """\
# {name}

A BiLSTM text classifier, {origin}. It reads {reads} and answers
with one of {count} labels: {labels}.

## Use

```python
import bert_kd

classify = bert_kd.load("path/to/this/folder")
{call}
```

```
pip install 'bert_kd[serve]'
bert-kd serve --bundle path/to/this/folder
```

{native}`model.onnx` runs wherever ONNX Runtime does. It takes `ids` and `lengths` (int64, padded
batch and real lengths{also}) and gives `logits`; `tokenizer.json` is for the `tokenizers` package
and gives the ids.

## Measured

{metrics}

The exported models against torch, on {rows:,} validation texts:

{runtimes}

## Size

| | |
| --- | --- |
| parameters | {parameters:,} |
| parameters without embeddings | {parameters_without:,} |
| models, weights and tokenizer on disk | {megabytes:.1f} MB |
{sizes}

## Training

{training}

## Limits

- It answers with one of its labels whatever it is given: a text of another language, topic or style
  than it was trained on gets a score all the same, and a high score is no proof.
- {cut}
- What {learned_from} got wrong, it learned.
"""


_NATIVE = """\
`native.safetensors` is for bert_kd's own CPU runtime, which answers unless another engine is asked
for. """


def model_card(bundle: Bundle, distilled: bool) -> str:
    """Return the card as Markdown. `distilled`: it learned from a teacher, not from gold labels
    alone.
    """
    pair = '{"text": "one text", "text_pair": "another"}'
    untold = ("pair", "dropout", "word_dropout")
    sizes = {key: value for key, value in bundle.shape.items() if key not in untold}
    return _TEXT.format(
        name=bundle.name,
        origin="distilled from a teacher by bert_kd"
        if distilled
        else "trained on labelled texts by bert_kd, without a teacher",
        learned_from="the teacher and the labelled texts" if distilled else "the labelled texts",
        reads="pairs of texts" if bundle.pair else "a text",
        count=len(bundle.labels),
        labels=", ".join(f"`{label}`" for label in bundle.labels),
        call=f"classify({pair})" if bundle.pair else 'classify("a text")',
        also=", for the second text `ids_b` and `lengths_b`" if bundle.pair else "",
        metrics=_table(bundle.metrics) or "No figures were given when this was exported.",
        native=_NATIVE if "native" in bundle.runtimes else "",
        rows=bundle.runtimes["onnx"].agreement.rows,
        runtimes=_table({name: _facts(runtime) for name, runtime in bundle.runtimes.items()}),
        parameters=bundle.parameters,
        parameters_without=bundle.parameters_without_embeddings,
        megabytes=bundle.bytes / 1e6,
        sizes="\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in sizes.items()),
        training=_table(bundle.training) or "No facts were given when this was exported.",
        cut=f"Texts are read up to {bundle.max_tokens:,} tokens; what follows is left out."
        if bundle.max_tokens
        else "Texts are read whole, however long.",
    )


def _facts(runtime: Runtime) -> dict[str, str]:
    """Return a runtime's facts as a row of the card's table."""
    agreement = runtime.agreement
    change = agreement.accuracy_change
    table = (
        f", {runtime.table} table of {runtime.table_bytes / 1e6:.1f} MB" if runtime.table else ""
    )
    return {
        "numbers": f"{runtime.precision}{table}",
        "size": f"{runtime.bytes / 1e6:.1f} MB",
        "same label": f"{agreement.label_agreement:.2%}",
        "largest difference in a logit": f"{agreement.largest_difference:.2g}",
        "accuracy, points": "–" if change is None else f"{100 * change:+.2f}",
    }


def _table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table: two columns or, where every value is a mapping, one for each key."""
    if not values:
        return ""
    if not all(isinstance(value, Mapping) for value in values.values()):
        lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items()]
        return "\n".join(["| | |", "| --- | --- |", *lines])
    columns = list(dict.fromkeys(column for value in values.values() for column in value))
    lines = [
        " | ".join(["", _cell(key), *(_cell(value.get(column, "")) for column in columns), ""])
        for key, value in values.items()
    ]
    head = " | ".join(["", "", *map(_cell, columns), ""])
    rule = " | ".join(["", *["---"] * (len(columns) + 1), ""])
    return "\n".join(line.strip() for line in [head, rule, *lines])


def _cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    return str(value).replace("|", "\\|").replace("\n", " ")
