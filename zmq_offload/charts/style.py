"""The look of every chart, and how a chart becomes a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
COLORS = ("#2563eb", "#d97706", "#dc2626", "#059669", "#7c3aed", "#0891b2")
MARKERS = ("o", "s", "^", "D", "v", "P")

WIDTH = 7.0
"""Inches: text is as large as it should be where a README shows the picture 700 pixels wide."""

DPI = 200

_LINE = 0.16
"""Inches that a line of text below the title takes."""

_STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in the name of a model is a "$"
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "svg.hashsalt": "zmq-offload",  # the same chart is the same file
}


@contextmanager
def styled(height: float, title: str, lines: Sequence[str] = ()) -> Iterator[Figure]:
    """A figure of that height in inches, with a title and lines of text above the axes that the body adds.

    The style holds in the body only. pyplot, which would keep figures and choose a screen's backend, is not used.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    head = 0.32 + _LINE * len(lines)
    inch = 1 / (height + head)
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are typed as 300 literals
        layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head * inch), w_pad=0.08)
        figure = Figure(figsize=(WIDTH, height + head), layout=layout)
        figure.text(0.012, 1 - 0.1 * inch, title, fontsize=11, fontweight="bold", va="top")
        for at, line in enumerate(lines):
            figure.text(0.012, 1 - (0.32 + _LINE * at) * inch, line, color=FAINT, fontsize=8, va="top")
        yield figure


def save(figure: Figure, file: Path) -> None:
    """Write a figure as SVG if the file's name ends in .svg, else as PNG.

    Control characters in texts are escaped: an SVG file with them is not well-formed. Characters that the font does
    not have, such as Chinese ones in a model's name, are drawn as boxes.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(printable(text.get_text()))
    svg = file.suffix.lower() == ".svg"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="svg" if svg else "png", dpi=DPI, metadata={"Date": None} if svg else None)


def legend_above(axes: Axes, columns: int) -> None:
    """The legend in one line above the axes, where it covers no data."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=columns, borderpad=0.2, columnspacing=1.2)


def every_nth(labels: Sequence[str], most: int) -> list[tuple[int, str]]:
    """Positions and texts of the labels to show if there is room for `most` of them."""
    step = max(1, -(-len(labels) // most))
    return [(at, labels[at]) for at in range(0, len(labels), step)]


def byte_size(size: float) -> str:
    """Bytes for a person, in powers of 1000."""
    factor, unit = next(((f, u) for f, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= f), (1.0, "B"))
    return f"{size / factor:.3g} {unit}"


def shortened(name: str, most: int) -> str:
    """A name of at most `most` characters, without its middle if it is longer."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"
