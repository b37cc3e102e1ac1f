"""The page of `bench_models`: what its table, summary and picture say of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.model_report import Row, summary, table, write_page


def row(ours: float, off: float = 1e-6, largest: float = 1.0) -> Row:
    times = {f"{name} ms {n}": ms for n in (1, 2) for name, ms in (("ours", ours), ("ort", 10.0))}
    sizes = {"start MB": 200.0, "peak MB": 500.0, "weights MB": 10.0}
    seconds = {"import s": 1.0, "build s": 3.0, "default build s": 2.0}
    return {"family": "images", **times, **sizes, **seconds, "off": off, "largest": largest}


RESULTS = {
    "znver4": {"a": row(5.0), "b": row(20.0, 2e-3, 1e-5), "c": {"family": "text", "error": "run: no | kernel"}},
    "x86-64-v3": {"a": row(8.0), "b": row(10.0, 1e-3, 1e-5), "c": {"family": "text", "error": "run: no | kernel"}},
}


def test_a_line_for_each_network_has_every_target_and_the_larger_difference() -> None:
    lines = table(RESULTS).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["**images**", "a", "b", "**text**", "c"]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[4] == "| b | 20 | 2.00 | 20 | 2.00 | 10 | 1.00 | 10 | 1.00 | 2e-08 abs. | 4.0 | 1.5 | 500 | 460 |"
    assert "run: no / kernel" in lines[6]


def test_the_summary_names_what_is_beyond_a_bar() -> None:
    text = summary(RESULTS)
    assert "2 of 3 networks of 2 families" in text
    assert "znver4, 1 thread: geometric mean 1.00, largest 2.00 (b); above 1.3: b 2.00." in text
    assert "x86-64-v3, 2 threads: geometric mean 0.89, largest 1.00 (b)." in text
    assert "Memory above 6 times the weights and 400 MB: a, b." in text


def test_the_page_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "compute.md"
    page.write_text("before\n<!-- bench_models: here -->\nold\n<!-- end of bench_models -->\nafter\n")
    for cpu in ("one CPU", "another CPU"):
        write_page(RESULTS, tmp_path, cpu)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("-->\nafter\n")
    assert "old" not in text and "one CPU" not in text and "Measured on another CPU." in text
    assert text.count("| a | 5 | 0.50 |") == 1
    assert "<svg" in (tmp_path / "networks.svg").read_text()


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "compute.md").write_text("text\n")
    with pytest.raises(SystemExit, match="has no markers"):
        write_page(RESULTS, tmp_path, "a CPU")
    assert not (tmp_path / "networks.svg").exists()
