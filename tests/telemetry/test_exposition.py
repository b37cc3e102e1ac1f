from __future__ import annotations

import math
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from zmq_offload.telemetry.exposition import Family, render
from zmq_offload.telemetry.histograms import Histogram

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LABELS = st.dictionaries(st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,8}", fullmatch=True), TEXT, max_size=3)


def parsed(*families: Family) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(render(families).decode())}


def one_of_each() -> list[Family]:
    counter = Family("zmq_offload_things_total", "counter", "Things that were done.")
    counter.add(7, {"model": 'a "b"\\c\nd', "status": "ok"})
    counter.add(0, {"model": "other", "status": "ok"})
    gauge = Family("zmq_offload_level", "gauge", "How high it is now,\nand how \\ low.")
    gauge.add(1.5)
    histogram = Family("zmq_offload_wait_seconds", "histogram", "Seconds that things waited.")
    times = Histogram((0.5, 1.0))
    for value in (0.25, 0.75, 0.75, 3.0):
        times.add(value)
    histogram.add_buckets(times.buckets(), {"model": "a"})
    return [counter, gauge, histogram]


def test_the_text() -> None:
    assert render(one_of_each()).decode().split("\n") == [
        "# HELP zmq_offload_things_total Things that were done.",
        "# TYPE zmq_offload_things_total counter",
        r'zmq_offload_things_total{model="a \"b\"\\c\nd",status="ok"} 7',
        'zmq_offload_things_total{model="other",status="ok"} 0',
        r"# HELP zmq_offload_level How high it is now,\nand how \\ low.",
        "# TYPE zmq_offload_level gauge",
        "zmq_offload_level 1.5",
        "# HELP zmq_offload_wait_seconds Seconds that things waited.",
        "# TYPE zmq_offload_wait_seconds histogram",
        'zmq_offload_wait_seconds_bucket{model="a",le="0.5"} 1',
        'zmq_offload_wait_seconds_bucket{model="a",le="1.0"} 3',
        'zmq_offload_wait_seconds_bucket{model="a",le="+Inf"} 4',
        'zmq_offload_wait_seconds_sum{model="a"} 4.75',
        'zmq_offload_wait_seconds_count{model="a"} 4',
        "",
    ]


def test_a_family_without_series_is_not_there() -> None:
    assert render([Family("zmq_offload_nothing", "gauge", "Nothing.")]) == b""


@given(LABELS, st.floats(), TEXT)
def test_what_is_rendered_comes_back(labels: dict[str, str], value: float, text: str) -> None:
    gauge = Family("zmq_offload_level", "gauge", text)
    gauge.add(value, labels)
    (sample,) = parsed(gauge)["zmq_offload_level"].samples
    assert sample.labels == labels
    assert sample.value == value or (math.isnan(sample.value) and math.isnan(value))


@given(st.lists(st.floats(0, 20)), LABELS)
def test_a_histogram_comes_back(values: list[float], labels: dict[str, str]) -> None:
    labels.pop("le", None)
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    family = Family("zmq_offload_wait_seconds", "histogram", "Seconds.")
    family.add_buckets(histogram.buckets(), labels)
    samples = parsed(family)["zmq_offload_wait_seconds"].samples
    buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
    assert buckets == {bound: sum(value <= bound for value in values) for bound in (*histogram.bounds, math.inf)}
    assert {s.name: s.value for s in samples if s.name.endswith("_count")} == {
        "zmq_offload_wait_seconds_count": len(values)
    }
    assert all(labels.items() <= s.labels.items() for s in samples)


def test_text_that_is_not_utf_8_does_not_cost_the_page() -> None:
    gauge = Family("zmq_offload_level", "gauge", "Level.")
    gauge.add(1, {"worker": "\ud800"})
    assert b'worker="?"' in render([gauge])


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of the Debian package prometheus")
    counter, gauge, histogram = one_of_each()
    gauge.help = "How high it is now."
    check = [promtool, "check", "metrics"]
    done = subprocess.run(check, input=render([counter, gauge, histogram]), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
