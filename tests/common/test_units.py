"""Bandwidths and times with units."""

from __future__ import annotations

import pytest

from zmq_offload.common.units import (
    age_text,
    bandwidth,
    bandwidth_text,
    counted,
    duration,
    gpu_text,
    size_text,
    time_text,
)
from zmq_offload.errors import InvalidArgument


def test_counted_nouns_have_their_plural() -> None:
    assert [counted(n, "thread") for n in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
    assert [counted(n, "process", "es") for n in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("text", "bits"),
    [("50Mbit", 5e7), ("1.5 Gbit", 1.5e9), ("800kbit/s", 8e5), ("64bit", 64), (".5mbit", 5e5), ("1000Gbit", 1e12)],
)
def test_bandwidths(text: str, bits: float) -> None:
    assert bandwidth(text) == bits


@pytest.mark.parametrize(("text", "seconds"), [("10ms", 0.01), ("250us", 0.00025), ("1.5 s", 1.5), ("0ms", 0.0)])
def test_times(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("50", "bandwidth '50' has no unit; did you mean 50Mbit?"),
        ("50MB", "'50MB' has an unknown unit; use bit, kbit, Mbit, Gbit"),
        ("50Mbps", "'50Mbps' has an unknown unit"),
        ("fast", "'fast' is not a number with a unit; write it like 50Mbit"),
        ("", "is not a number with a unit"),
        ("-5Mbit", "'-5Mbit' is not a number with a unit"),
        ("0Mbit", "'0Mbit' is out of range"),
        ("2000Gbit", "at most 1000Gbit"),
        ("1e400Mbit", "is not a number with a unit"),
        ("nanMbit", "is not a number with a unit"),
    ],
)
def test_a_wrong_bandwidth_is_refused_with_a_right_one(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        bandwidth(text)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [("10", "time '10' has no unit; did you mean 10ms?"), ("10min", "use us, ms, s"), ("4000s", "use at most an hour")],
)
def test_a_wrong_time_is_refused_with_a_right_one(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        duration(text)
    assert says in caught.value.message


def test_a_bandwidth_is_written_as_it_is_read() -> None:
    for text in ("50Mbit", "1.5Gbit", "800kbit", "64bit"):
        assert bandwidth_text(bandwidth(text)) == text


def test_sizes_and_times_are_written_with_units() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1536, 3 * 1024**2, 5 * 1024**3, 1500 * 1024**4)] == [
        "0 B", "999 B", "0.977 KiB", "1.5 KiB", "3 MiB", "5 GiB", "1,500.0 TiB",
    ]  # fmt: skip
    assert [time_text(s) for s in (0, 0.0000123, 0.0009996, 0.0123, 0.9996, 12.34)] == [
        "0 us", "12.3 us", "1 ms", "12.3 ms", "1 s", "12.3 s",
    ]  # fmt: skip
    assert [age_text(s) for s in (5.9, 65, 3 * 3600 + 61, 93784)] == ["5 s", "1 min 5 s", "3 h 1 min", "1 d 2 h"]


def test_what_is_used_of_a_gpu_is_written_as_far_as_it_is_known() -> None:
    use = {"used_bytes": 10 * 1024**3, "total_bytes": 80 * 1024**3, "busy_percent": 87}
    assert gpu_text(use) == "10 GiB of 80 GiB, 87%"
    assert gpu_text({"busy_percent": 0}) == "0%"
    assert gpu_text({"used_bytes": 0}) == "0 B"
    assert gpu_text({}) == "unknown"
