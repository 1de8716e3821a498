"""How the benchmarks' figures are drawn: what those of accuracy and of speed have in common."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bert_kd.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in inches. Raises MissingExtra without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as NewFigure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    with matplotlib.rc_context({"svg.hashsalt": "bert_kd", "svg.fonttype": "none"}):
        yield NewFigure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure) -> str:
    """Return the figure as SVG, the same bytes for the same figure."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
    # matplotlib leaves blanks at the ends of lines.
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def style(axes: Axes) -> None:
    """Give axes light rules and no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
