"""The figures of `docs/speed.md`, as SVG, from the JSON of the speed benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures import as_svg, new_figure, style
from speed_runs import metrics_of, systems_of, value_of

from bert_kd.evaluate.format import times

Json = Mapping[str, Any]
COLOURS = {
    "bert-torch": "#1f6f5c",
    "bert-onnx": "#5aa58f",
    "student-torch": "#8a5a44",
    "student-onnx": "#d9895b",
    "native": "#c2410c",
    "fasttext": "#57606a",
    "linear": "#8b949e",
}
KINDS = {
    "bert-torch": "BERT, torch",
    "bert-onnx": "BERT, ONNX Runtime",
    "student-torch": "student, torch",
    "student-onnx": "student, ONNX Runtime",
    "native": "student, native",
    "fasttext": "fastText",
    "linear": "linear",
}


def draw(found: Json) -> tuple[str, str] | None:
    """Return the figure of a section as SVG and what it shows, or None where it has none."""
    kind = found["config"]["benchmark"]
    if kind == "inference":
        return draw_inference(found), "Time for one text and texts a second in bulk, by system"
    if kind == "training":
        metric = f"{metrics_of(found['rows'], 'examples_per_second')[0]}.examples_per_second"
        return draw_bars(found, metric, "times the ordinary loop"), "Training by part"
    if kind == "caching":
        return draw_bars(found, "rows_per_second", "times the padded loop"), "Caching logits"
    if kind == "caching-freezing":
        label = "time of a step, that of training all being 1"
        return draw_bars(found, "milliseconds_a_step", label), "A step by trained layers"
    return None


def draw_inference(found: Json) -> str:
    """Return time for one text and throughput of all systems, for the first case, as SVG."""
    rows, systems = found["rows"], found["config"]["systems"]
    case = metrics_of(rows, "texts_per_second")[0]
    panels = (
        ("latency_p50_us", "time for one text, median, µs (logarithmic)"),
        ("texts_per_second", "texts a second in bulk (logarithmic)"),
    )
    names = sorted(systems, key=lambda name: value_of(rows, name, f"{case}.{panels[1][0]}") or 0.0)
    with new_figure(8.5, 1.0 + 0.19 * len(names)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, (metric, label) in zip((left, right), panels, strict=True):
            style(axes)
            for kind in KINDS:
                mine = [place for place, name in enumerate(names) if systems[name]["kind"] == kind]
                values = [value_of(rows, names[place], f"{case}.{metric}") for place in mine]
                if mine:
                    axes.plot(
                        values, mine, "o", markersize=5, color=COLOURS[kind], label=KINDS[kind]
                    )
            axes.set_xscale("log")
            axes.set_xlabel(label, fontsize=9)
        left.set_yticks(range(len(names)), names)
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8
        )
        return as_svg(figure)


def draw_bars(found: Json, metric: str, label: str) -> str:
    """Return the ratios of a metric as horizontal bars, as SVG."""
    rows = found["rows"]
    names = systems_of(rows, metric)
    with new_figure(7, 0.6 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        style(axes)
        values = [value_of(rows, name, metric, "ratio") or 0.0 for name in names]
        places = [-place for place in range(len(names))]
        axes.barh(places, values, height=0.6, color=COLOURS["native"])
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                times(value), (value, place), (4, -3), textcoords="offset points", fontsize=8
            )
        axes.set_yticks(places, names)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlabel(label, fontsize=9)
        return as_svg(figure)
