"""Each kind of chart draws without a warning, and its axes contain all of its numbers."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from tests.benchmarks import peers
from zmq_offload.charts import bars, cuts, functions, graph, links, load, timeline
from zmq_offload.charts.style import DPI, WIDTH, every_nth, save

ESTIMATED = [cuts.Point(at, latency, False) for at, latency in enumerate((800.0, 90.0, 41.0, 60.0))]
CUTS = cuts.CutsChart(
    "$model$ over 50Mbit",
    "Chosen: c as int8, 40.0 ms",
    ["x", "b" * 40, "c", "µ"],
    [
        cuts.Curve("float32", ESTIMATED, [5_000_000, 900_000, 3_000, 40]),
        cuts.Curve("int8", [cuts.Point(2, 40.0, True)], [1_250_000, 225_000, 750, 10]),
    ],
    54.5,
    cuts.Point(2, 40.0, True),
)
LOAD = load.LoadChart(
    "echo: 38,400 bytes",
    "a machine",
    "requests in flight",
    ["1", "4", "16"],
    [3000.0, 5000.0, 0.0],
    {"p50": [0.3, 0.8, math.nan], "p99": [0.5, 40.0, math.nan]},
    {"client": [0.2, 0.3, math.nan], "queue": [0.1, 0.5, math.nan]},
)
FUNCTIONS = functions.FunctionsChart(
    "Where the time goes: m",
    [("model", "m " * 90), ("peak", "100 GFLOP/s")],
    "µs",
    [
        functions.Row("fused_conv2d", "1x8x8x8   3 calls", 9.0, "9.00 µs", "90.0%", "model", 0.5),
        functions.Row("head (offloaded)", "1 call", 0.9, "0.90 µs", "9.0%", "offloaded"),
        functions.Row("(virtual machine)", "40 calls", 0.1, "0.10 µs", "1.0%", "machine"),
    ],
)
TIMELINE = timeline.Timeline(
    "Pipelined",
    {at: {"device": (9.0 * at, 9.0 * at + 8), "uplink": (9.0 * at + 8, 9.0 * at + 20)} for at in range(3, 8)},
    ("uplink",),
)
BARS = bars.Bars(
    "Peers", {"1 KB": {"a": 1.0, "b": 3.0}, "1 MB": {"a": 20.0}}, ["a", "b"], {"a": 0, "b": 1}, "{} ms".format
)

LINK = links.Recorded(
    "µ" * 80, [0, 1, 3, 4], [5.0, 0.0, 800.0], [9.0, 0.0, 1e5], [1.0, 0.0, 900.0], [False, True, False]
)

GRAPH = graph.GraphChart(
    "m.onnx",
    ["1 G multiply-adds"],
    [
        graph.Stretch("conv2d, relu", 0.6, 4_000_000, 1, "a" * 40),
        graph.Stretch("conv2d", 0.4, 8_000_000, 2, None),
        graph.Stretch("add, " * 20, 0.0, 300, 1, "µ"),
        graph.Stretch("", 0.0, 0, 0, None),
    ],
    [(0, 2)],
)

FIGURES = {
    "cuts": lambda: cuts.draw(CUTS),
    "load": lambda: load.draw(LOAD),
    "functions": lambda: functions.draw(FUNCTIONS),
    "timeline": lambda: timeline.draw(TIMELINE),
    "bars": lambda: bars.draw(BARS),
    "graph": lambda: graph.draw(GRAPH),
    "links": lambda: links.draw([LINK, LINK, LINK]),
    "link": lambda: links.draw([LINK]),
}


def drawn(axes: Axes) -> Iterator[tuple[float, float]]:
    """All points of lines in data coordinates, and two corners of each bar and each box."""
    for line in axes.get_lines():
        if line.get_transform() == axes.transData:
            yield from zip(*map(np.atleast_1d, line.get_data()), strict=True)  # type: ignore[arg-type]
    for bar in axes.patches:
        (x0, y0), (x1, y1) = bar.get_window_extent().transformed(axes.transData.inverted()).get_points()
        yield from ((x0, y0), (x1, y1))
    for boxes in axes.collections:
        for path in boxes.get_paths():
            yield from map(tuple, path.vertices)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FIGURES)
def test_a_chart_draws_without_a_warning_and_contains_all_of_its_numbers(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure: Figure = FIGURES[kind]()
        save(figure, tmp_path / "chart.png")
        save(figure, tmp_path / "chart.svg")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG" and image.width == WIDTH * DPI
        assert len(image.getcolors(1 << 20) or ()) > 20
    assert ElementTree.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")
    points = 0
    for axes in figure.axes:
        (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        for x, y in drawn(axes):
            if math.isfinite(x) and math.isfinite(y):
                points += 1
                assert left - 1e-6 <= x <= right + 1e-6, (axes.get_title(), x, y)
                # A bar on a logarithmic axis begins at nothing.
                assert y <= high * (1 + 1e-9) and (y >= low - 1e-6 or axes.get_yscale() == "log"), (x, y)
    assert points > 5


def test_texts_are_inside_of_the_picture_and_above_no_data() -> None:
    for kind, make in FIGURES.items():
        figure = make()
        figure.draw_without_rendering()
        area = figure.bbox
        for axes in figure.axes:
            for text in axes.texts:
                box = text.get_window_extent()
                assert area.x0 - 1 <= box.x0 and box.x1 <= area.x1 + 1, (kind, text.get_text())
            legend = axes.get_legend()
            if legend is not None:
                box = legend.get_window_extent()
                assert box.y0 >= axes.bbox.y1 - 2, f"{kind}: the legend covers data"
                assert area.x0 - 1 <= box.x0 and box.x1 <= area.x1 + 1, kind


def test_estimated_and_measured_have_different_markers() -> None:
    latency = cuts.draw(CUTS).axes[0]

    def own(name: str) -> list[Line2D]:
        return [line for line in latency.get_lines() if line.get_gid() == name and len(line.get_xdata())]  # type: ignore[arg-type]

    estimated, measured = own("estimated"), own("measured")
    assert sum(len(line.get_xdata()) for line in estimated) == 4  # type: ignore[arg-type]
    assert sum(len(line.get_xdata()) for line in measured) == 1  # type: ignore[arg-type]
    assert {str(line.get_markerfacecolor()) for line in estimated} == {"white"}
    assert all(line.get_markerfacecolor() == line.get_color() != "white" for line in measured)
    (chosen,) = own("chosen")
    assert chosen.get_xydata().tolist() == [[2.0, 40.0]]  # type: ignore[union-attr]
    legend = latency.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts() if text.get_text().strip()]
    assert texts == ["float32", "estimated", "int8", "measured", "device only, 54.5 ms", "chosen"]


def test_items_of_a_timeline_that_overlap_do_not_cover_each_other() -> None:
    (axes,) = timeline.draw(TIMELINE).axes
    boxes = {boxes.get_gid(): boxes.get_paths()[0].get_extents() for boxes in axes.collections}
    assert len(boxes) == 10
    for one in boxes:
        for other in boxes:
            assert one == other or not boxes[one].padded(-1e-3).overlaps(boxes[other])


def test_empty_charts_are_drawn() -> None:
    assert timeline.draw(timeline.Timeline("nothing", {})).axes
    assert cuts.draw(cuts.CutsChart("t", "s", [], [], 1.0, None)).axes
    assert load.draw(load.LoadChart("t", "s", "l", ["1"], [0.0], {"p50": [math.nan]}, {"client": [math.nan]})).axes


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_characters_that_no_font_has_are_drawn_without_a_warning(suffix: str, tmp_path: Path) -> None:
    name = "[red]日[/]<b>\x1b[31m\x07"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = cuts.draw(dataclasses.replace(CUTS, title=name, names=[name] * 4))
        save(figure, tmp_path / f"chart.{suffix}")
    if suffix == "svg":
        ElementTree.parse(tmp_path / "chart.svg")


@pytest.mark.parametrize(("least", "largest"), [(300, 300), (262_144, 524_288), (40, 900_000_000)])
def test_bytes_of_cuts_have_round_numbers_below_them(least: int, largest: int) -> None:
    places = [graph.Stretch("conv2d", 0.5, size, 1, "t" * 26) for size in (least, largest)]
    figure = graph.draw(graph.GraphChart("m.onnx", [], [*places, graph.Stretch("", 0.0, 0, 0, None)], []))
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels(which="both")]
    assert labels and all(re.fullmatch(r"[125]0{0,2} [kMG]?B", label) for label in labels)
    # What is written beside the longest bar has room: otherwise both columns shrink until their titles overlap.
    box = figure.axes[1].get_window_extent()
    assert box.width > 0.5 * figure.bbox.width and max(t.get_window_extent().x1 for t in figure.axes[1].texts) < box.x1


def test_labels_are_left_out_where_there_is_no_room() -> None:
    assert every_nth("abcdefg", 3) == [(0, "a"), (3, "d"), (6, "g")]
    assert every_nth("ab", 3) == [(0, "a"), (1, "b")]


def test_the_interactive_chart_has_all_series() -> None:
    pytest.importorskip("plotly")
    figure = load.interactive(LOAD)
    assert [trace.name for trace in figure.data] == ["requests/s", "p50", "p99", "client", "queue"]
    assert list(figure.data[2].y) == [0.5, 40.0, None]
    assert figure.layout.barmode == "stack"


def test_matplotlib_is_imported_when_a_chart_is_drawn_and_pyplot_never() -> None:
    code = (
        "import sys\n"
        "from zmq_offload.charts import bars, cuts, functions, links, load, style, timeline\n"
        "assert not {'matplotlib', 'plotly', 'numpy'} & set(sys.modules)\n"
        "timeline.draw(timeline.Timeline('t', {}))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recorded_table_of_peers_is_drawn_again() -> None:
    medians = {"zmq-offload, echo": {1024: 0.000325, 1 << 20: 0.0204}, "mosec, HTTP": {1024: 0.000209}}
    again, sizes = peers.recorded(f"text\n\n{peers.table(medians, [1024, 1 << 20])}\n\ntext")
    assert sizes == [1024, 1 << 20] and list(again) == list(medians)
    assert again["zmq-offload, echo"] == pytest.approx(medians["zmq-offload, echo"])
    assert again["mosec, HTTP"] == pytest.approx({1024: 0.000209}), "what failed has no value"
    assert peers.chart(medians, [1024, 1 << 20]).groups == {"zmq-offload, echo": 0, "mosec, HTTP": 1}
