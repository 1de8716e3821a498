"""Figures that are part of the page: drawn by matplotlib, in the page's own colours and font.

matplotlib draws with stand-in colours, which become CSS variables afterwards, so that one figure
fits light, dark and print; text stays text.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from bert_kd.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT, SMALL = 10.0, 9.0
"""Points."""

INK, MUTED, LINE, PAPER = "#000001", "#000002", "#000003", "#000004"
TEACHER = "#000005"
SERIES = ("#000006", "#000007", "#000008", "#000009", "#00000a", "#00000b")
COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    TEACHER: "var(--teacher)",
} | {colour: f"var(--series-{index + 1})" for index, colour in enumerate(SERIES)}


def shorten(text: str, columns: int) -> str:
    """Return `text` cut to about `columns` columns (a Chinese character takes two), with an
    ellipsis.
    """
    taken = 0
    for place, character in enumerate(text):
        taken += 2 if _is_wide(character) else 1
        if taken > columns:
            return text[:place].rstrip() + "…"
    return text


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def text_width(text: str, font: float) -> float:
    """Return about how many points `text` takes in the page's font, unknown to matplotlib."""
    return sum(1.0 if _is_wide(character) else 0.55 for character in text) * font


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in points, in the report's style. Raises MissingExtra without
    matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as NewFigure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "bert_kd",
        "text.parse_math": False,
        "font.family": ["DejaVu Sans"],
        "font.size": FONT,
        "axes.unicode_minus": True,
        "axes.labelcolor": MUTED,
        "axes.labelsize": SMALL,
        "axes.titlepad": 7,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield NewFigure(figsize=(width / 72, height / 72), facecolor="none")


def axes_in(figure: Figure, left: float, right: float, bottom: float, top: float) -> Axes:
    """Return axes with these margins in points, with light rules and no frame."""
    width, height = figure.get_size_inches() * 72
    axes: Axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - bottom - top) / height,
        ),
        facecolor="none",
    )
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED, pad=4)
    return axes


def to_svg(figure: Figure, name: str, title: str) -> str:
    """Return the figure as an `<svg>` element for the page, titled for those who can't see it.

    `name` keeps the ids of several figures on one page apart.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _page_value(key.rpartition("}")[2], value, name)
            for key, value in element.attrib.items()
        }
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title"}
    heading = ElementTree.Element("title", {"id": f"{name}-title"})
    heading.text = title
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode")


def _page_value(key: str, value: str, name: str) -> str:
    """Return an attribute's value for the page: own ids, the page's colours and font."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key != "style":
        return value
    kept = []
    for part in value.split(";"):
        attribute, _, setting = part.strip().partition(": ")
        if attribute == "font-family":
            continue
        if attribute == "font":  # "10px 'DejaVu Sans', …": the size alone
            attribute, setting = "font-size", setting.partition("px")[0].split()[-1] + "px"
        kept.append(f"{attribute}: {COLOURS.get(setting, setting)}")
    return "; ".join(kept)
