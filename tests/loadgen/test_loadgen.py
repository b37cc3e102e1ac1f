"""The parts of the load generator that need no fabric: levels, windows, inputs, reports."""

from __future__ import annotations

import csv
import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.loadgen import report
from zmq_offload.loadgen.inputs import difference, make_inputs, parse_file, parse_shape, served_signature
from zmq_offload.loadgen.levels import Level, concurrencies, rates
from zmq_offload.loadgen.measure import described
from zmq_offload.loadgen.stats import PARTS, Samples, Summary, record, stable, summarize
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec

# --- levels -------------------------------------------------------------------------------------------------


def test_levels_of_text() -> None:
    assert [level.concurrency for level in concurrencies("1,4,16")] == [1, 4, 16]
    assert [level.rate for level in rates("100:300:100")] == [100, 200, 300]
    assert [level.rate for level in rates("0.1:0.3:0.1")] == pytest.approx([0.1, 0.2, 0.3])
    assert [level.rate for level in rates("50,7.5")] == [50, 7.5]


@pytest.mark.parametrize("text", ["", "0", "-1", "1,,2", "x", "1.5", "70000"])
def test_bad_concurrencies_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="1,4,16"):
        concurrencies(text)


@pytest.mark.parametrize(
    "text",
    ["", "0", "10:5:1", "1:2:0", "1:2:-1", "1:2", "1:2:3:4", "nan", "inf", "1e9", "1:inf:1", "nan:1:1", "1:1:nan"],
)
def test_bad_rates_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="FROM:TO:STEP"):
        rates(text)


def test_a_level_that_is_named_twice_is_one_and_too_many_are_refused() -> None:
    assert [level.concurrency for level in concurrencies("4,1,4")] == [4, 1]
    assert [level.rate for level in rates("5,5.0,7")] == [5, 7]
    for text in ("1:100000:1", "1:1e6:1e-9", ",".join(map(str, range(1, 2000)))):
        with pytest.raises(InvalidArgument, match="use at most 1,000"):
            rates(text)


@pytest.mark.parametrize(("concurrency", "processes"), [(1, 1), (16, 3), (2, 5)])
def test_processes_share_a_level(concurrency: int, processes: int) -> None:
    shares = [level.concurrency for level in Level(concurrency=concurrency).share(processes)]
    assert sum(shares) == concurrency and len(shares) == processes and max(shares) - min(shares) <= 1
    assert sum(level.rate for level in Level(rate=90).share(processes)) == pytest.approx(90)


# --- windows ------------------------------------------------------------------------------------------------


def samples(counts: list[int], latencies: list[float], level: Level | None = None) -> Samples:
    """Windows of one second, each with `counts` requests of one latency."""
    made = Samples(level or Level(concurrency=1), 100.0)
    for at, (count, latency) in enumerate(zip(counts, latencies, strict=True)):
        made.add(
            [record(100 + at + (n + 0.5) / count, latency, 0.001, 0.002, 0.004) for n in range(count)],
            [("UNAVAILABLE", f"in window {at}")],
        )
    return made


def test_the_parts_add_up_to_the_latency() -> None:
    _, latency, *parts = record(5.0, 0.010, 0.001, 0.002, 0.007)
    assert sum(parts) == pytest.approx(latency)
    assert dict(zip(PARTS, parts, strict=True)) == pytest.approx(
        {"client": 0.003, "queue": 0.001, "compute": 0.002, "network": 0.004}
    )


@pytest.mark.parametrize(
    ("counts", "latencies", "agree"),
    [
        ([10, 100, 101, 99], [0.5, 0.01, 0.01, 0.0101], True),
        ([100, 100], [0.01, 0.01], False),
        ([100, 130, 100], [0.01, 0.01, 0.01], False),
        ([100, 100, 100], [0.01, 0.013, 0.01], False),
        ([100, 0, 100], [0.01, 0.01, 0.01], False),
    ],
)
def test_windows_agree_within_ten_percent(counts: list[int], latencies: list[float], agree: bool) -> None:
    assert stable(samples(counts, latencies).windows(1.0, 100.0 + len(counts))) is agree


def test_a_summary_is_of_the_windows_that_agree() -> None:
    made = samples([10, 100, 100, 100], [0.5, 0.01, 0.01, 0.01])
    summary = summarize(made, made.windows(1.0, 104.5), 1.0)
    assert summary.stable and summary.requests == 300 and summary.seconds == 3
    assert summary.throughput == pytest.approx(100)
    assert summary.latency == pytest.approx({"p50": 10, "p90": 10, "p95": 10, "p99": 10, "max": 10})
    assert sum(summary.parts.values()) == pytest.approx(10)
    assert summary.errors == {"UNAVAILABLE": 4} and summary.texts == {"UNAVAILABLE": "in window 0"}


def test_without_agreement_all_but_the_first_window_count() -> None:
    made = samples([10, 100, 200], [0.5, 0.01, 0.01])
    summary = summarize(made, made.windows(1.0, 103.0), 1.0)
    assert not summary.stable and summary.requests == 300 and summary.throughput == pytest.approx(150)


def test_a_level_without_one_result_is_a_summary_too() -> None:
    made = samples([0, 0, 0], [1, 1, 1])
    summary = summarize(made, made.windows(1.0, 103.0), 1.0)
    assert summary.requests == 0 and summary.throughput == 0 and math.isnan(summary.latency["p50"])


def test_a_sender_that_is_late_for_long_falls_short() -> None:
    made = samples([100] * 4, [0.01] * 4, Level(rate=200.0))
    made.add([], [], sent=400, late=0.5, process=7)
    made.add([], [], sent=200, late=0.01, process=8)
    summary = summarize(made, made.windows(1.0, 104.0), 1.0, 4.0)
    assert summary.short and summary.sent == pytest.approx(150)
    made.add([], [], late=0.15, process=7)  # it caught up: 4 % of the time
    assert not summarize(made, made.windows(1.0, 104.0), 1.0, 4.0).short


# --- inputs -------------------------------------------------------------------------------------------------

SIGNATURE = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("n", "INT64", (2,)))


def test_random_inputs_fit_the_signature() -> None:
    inputs = make_inputs(SIGNATURE, {}, {}, "model 'm'")
    assert inputs["x"].dtype == np.float32 and inputs["x"].shape == (1, 3)
    assert inputs["n"].dtype == np.int64 and inputs["n"].shape == (2,)
    again = make_inputs(SIGNATURE, {}, {"x": ("FP32", (5, 3))}, "model 'm'")
    assert again["x"].shape == (5, 3)


def test_files_and_shapes_take_the_place_of_random_data(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 3), 4, np.float32))
    files = dict([parse_file(f"x={tmp_path / 'x.npy'}")])
    assert (make_inputs(SIGNATURE, files, {}, "m")["x"] == 4).all()
    name, datatype, shape = parse_shape("x=2,3:UINT8")
    free = make_inputs((), {}, {name: (datatype, shape)}, "echo")
    assert free["x"].dtype == np.uint8 and free["x"].shape == (2, 3)
    assert parse_shape("s=7") == ("s", "FP32", (7,))


@pytest.mark.parametrize(
    ("files", "shapes", "says"),
    [
        ({"y": np.zeros(1)}, {}, "no input y; it takes x, n"),
        ({"x": np.zeros((2, 4), np.float32)}, {}, "input 'x' has shape"),
        ({"x": np.zeros((2, 3))}, {}, "input 'x' has datatype FP64"),
    ],
)
def test_what_does_not_fit_the_signature_is_named(files: Any, shapes: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make_inputs(SIGNATURE, files, shapes, "model 'm'")


def test_a_model_that_takes_anything_must_be_told_what() -> None:
    with pytest.raises(InvalidArgument, match="--shape or --input"):
        make_inputs((), {}, {}, "model 'echo'")


def test_random_inputs_have_their_datatypes_and_take_no_more_memory() -> None:
    for datatype, dtype in DATATYPES.items():
        made = make_inputs((), {}, {"x": (datatype, (50,))}, "echo")["x"]
        assert made.dtype == dtype and len(set(made.tolist())) > 1


def test_a_tensor_that_no_message_holds_is_refused_before_it_is_made() -> None:
    with pytest.raises(InvalidArgument, match="has 1,099,511,627,775 bytes; the limit is 268,435,456"):
        make_inputs((), {}, {"x": ("INT8", (2**40 - 1,))}, "echo")
    assert make_inputs((), {}, {"x": ("INT8", (9,))}, "echo", max_frame_bytes=9)["x"].nbytes == 9
    with pytest.raises(InvalidArgument, match="has 10 bytes"):
        make_inputs((), {}, {"x": ("INT8", (10,))}, "echo", max_frame_bytes=9)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "=1",
        "x=",
        "x=a",
        "x=-1",
        "x=1:FLOAT",
        "x=1:text",
        f"x={'9' * 20}",
        f"x={'9' * 5000}",
        "x=" + "1," * 16 + "1",
    ],
)
def test_bad_shapes_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_shape(text)


def test_a_file_without_one_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"text")
    np.savez(tmp_path / "many.npz", a=np.zeros(1))
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    for name in ("bad.npy", "many.npz", "missing.npy", "pickled.npy"):
        with pytest.raises(FailedPrecondition, match=name):
            parse_file(f"x={tmp_path / name}")


def test_the_signature_is_the_latest_served() -> None:
    tensor = TensorSpec("x", "FP32", (1,)).to_json()
    models = [{"name": "m", "version": v, "inputs": [tensor] * v, "outputs": []} for v in (1, 2)]
    assert len(served_signature(models, "m", None)) == 2
    assert len(served_signature(models, "m", 1)) == 1
    with pytest.raises(NotFound, match=r"'n' is not served; served are: m \(version 1\), m \(version 2\)"):
        served_signature(models, "n", None)


def test_differences_are_found() -> None:
    x = np.ones((2, 2), np.float32)
    assert difference({"y": x + 1e-5}, {"y": x}) is None
    assert "missing" in (difference({}, {"y": x}) or "")
    assert "float32[2, 2] was expected" in (difference({"y": x[0]}, {"y": x}) or "")
    assert "by up to 0.5" in (difference({"y": x + np.float32(0.5)}, {"y": x}) or "")
    assert difference({"n": np.array([1, 2])}, {"n": np.array([1, 3])}) is not None


# --- pictures and reports -----------------------------------------------------------------------------------


def summaries() -> list[Summary]:
    made = []
    for concurrency in (1, 4, 16):
        some = samples([100] * 3, [0.01 * concurrency] * 3, Level(concurrency=concurrency))
        made.append(summarize(some, some.windows(1.0, 103.0), 1.0))
    nothing = samples([0], [1], Level(concurrency=64))
    return [*made, summarize(nothing, nothing.windows(1.0, 101.0), 1.0)]


REPORT = report.Report("a <model> & more", "two processes", summaries())


def test_the_table_has_a_line_for_each_level() -> None:
    columns, widths = report.columns([s.level for s in REPORT.summaries])
    assert [column.heading for column in columns[:3]] == ["in flight", "requests/s", "p50"]
    rows = [report.row(s) for s in REPORT.summaries]
    assert all(len(row) == len(columns) == len(widths) for row in rows)
    assert rows[0][:3] == ["1", "100.0", "10.0"]
    assert rows[3][0] == "64 *" and rows[3][2] == "-"
    assert sum(widths) + len(widths) <= 100, "fits a terminal of 100 columns"
    assert "64 in flight: 1 x UNAVAILABLE: in window 0" in report.error_lines(REPORT.summaries)


def test_a_level_in_which_nothing_ended_says_so() -> None:
    nothing = Samples(Level(concurrency=2), 100.0)
    silent = summarize(nothing, nothing.windows(1.0, 101.0), 1.0)
    assert "  2 in flight: no request ended within the level; use a longer --duration" in report.notes([silent])
    assert not [line for line in report.notes(REPORT.summaries) if "no request ended" in line]


def test_a_level_that_runs_shows_its_last_window() -> None:
    some = samples([100], [0.01], Level(concurrency=16))
    assert described(some, some.windows(1.0, 101.0)[0], 1.0) == "100/s, p50 10.00 ms, p99 10.00 ms, 1 error"
    nothing = Samples(Level(concurrency=16), 100.0)
    assert described(nothing, nothing.windows(1.0, 101.0)[0], 1.0) == "0/s, p50 nan ms, p99 nan ms"


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    report.csv(tmp_path / "r.csv", REPORT)
    report.as_json(tmp_path / "r.json", REPORT)
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels = json.loads((tmp_path / "r.json").read_text())["levels"]
    assert [int(row["concurrency"]) for row in rows] == [level["concurrency"] for level in levels] == [1, 4, 16, 64]
    assert float(rows[1]["p99_ms"]) == pytest.approx(levels[1]["latency_ms"]["p99"])
    assert rows[0]["UNAVAILABLE"] == "3" and levels[0]["errors"] == {"UNAVAILABLE": 3}
    assert levels[3]["latency_ms"]["p50"] is None, "JSON has no NaN"


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "data", "action")]


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    report.html(tmp_path / "r.html", REPORT)
    text = (tmp_path / "r.html").read_text()
    page = Elements()
    page.feed(text)
    assert page.links == [], "nothing is loaded: the script is in the page"
    assert "Plotly.newPlot(" in text and "cdn.plot.ly/plotly" not in text
    assert page.tags.count("tr") == 1 + len(REPORT.summaries)
    assert "a &lt;model&gt; &amp; more" in text


def test_pictures_are_png_or_svg_by_their_names(tmp_path: Path) -> None:
    report.png(tmp_path / "r.png", REPORT)
    report.png(tmp_path / "r.svg", REPORT)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "r.svg").read_bytes()[:1000]


def test_the_chart_has_the_figures_of_each_level() -> None:
    made = report.chart(REPORT)
    assert list(made.names) == ["1", "4", "16", "64"] and made.level == "requests in flight"
    assert made.latency["p50"][:3] == pytest.approx([10, 40, 160]) and math.isnan(made.latency["p50"][3])
    assert [sum(values) for values in zip(*made.parts.values(), strict=True)][:3] == pytest.approx([10, 40, 160])


@pytest.mark.parametrize(("kind", "package"), [("png", "matplotlib"), ("html", "plotly")])
def test_a_missing_package_for_charts_is_found_before_the_test(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    report.check_charts({"csv", "json", *({"png", "html"} - {kind})})
    with pytest.raises(FailedPrecondition, match=r"zmq-offload\[load\]"):
        report.check_charts({kind})
