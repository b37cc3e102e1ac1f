"""Recorded links: what their files say, and what a link is like when."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from zmq_offload.errors import InvalidArgument
from zmq_offload.testing.link.conditions import check_alone
from zmq_offload.testing.link.synthesis import made
from zmq_offload.testing.link.trace import NAMES, Moment, Trace

HEAD = "seconds,up,down,delay,stall\n"
SMALL = HEAD + "0,10,20,5,0\n2,0,0,5,1\n\n3,1,2,50,0\n"


def test_a_row_holds_until_the_next_and_the_trace_repeats() -> None:
    trace = Trace.parse(SMALL, "small")
    assert trace.length == 4, "the last row is as long as the one before it"
    assert trace.at(0) == trace.at(1.99) == Moment(0, 10e6, 20e6, 0.005, False)
    assert trace.at(2).stalled
    assert trace.at(3.5) == trace.at(7.5) == Moment(3, 1e6, 2e6, 0.05, False)
    assert [moment.seconds for moment in islice(trace.changes(), 7)] == [0, 2, 3, 4, 6, 7, 8]


def test_a_lone_row_is_a_constant_link() -> None:
    trace = Trace.parse(HEAD + "0,10,20,5,0", "one")
    assert trace.length == 1 and trace.at(1e6) == trace.moments[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f: line 1 is ''; expected seconds,up,down,delay,stall"),
        ("a,b\n", "f: line 1 is 'a,b'; expected seconds,up"),
        (HEAD, "f has no rows; expected one for each change"),
        (HEAD + "0,1,1,1\n", "f: line 2 has 4 fields; expected 5"),
        (HEAD + "0,1,x,1,0\n", "f: line 2: down is 'x'; expected a number from 0 to 1e[+]06"),
        (HEAD + "0,1,nan,1,0\n", "f: line 2: down is 'nan'"),
        (HEAD + "0,1,1,-1,0\n", "f: line 2: delay is '-1'"),
        (HEAD + "0,1,1,1,2\n", "f: line 2: stall is 2; expected 0 or 1"),
        (HEAD + "0,0,1,1,0\n", "f: line 2: up is 0; expected more, or a stall of 1"),
        (HEAD + "1,1,1,1,0\n", "f: line 2 is at 1 seconds; expected 0"),
        (HEAD + "0,1,1,1,0\n\n0,1,1,1,0\n", "f: line 4 is at 0 seconds; expected more than 0"),
        (HEAD + "0,1,1,1,1\n", "f lets nothing through; expected a row without a stall"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Trace.parse(text, "f")


def test_a_trace_is_found_by_its_name_or_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(SMALL)
    assert Trace.find("train") == Trace.named("train")
    assert Trace.find(str(tmp_path / "mine.csv")).length == 4
    with pytest.raises(InvalidArgument, match="trace 'tram' is unknown; use a CSV file, or one of steady-5g, "):
        Trace.find("tram")
    with pytest.raises(InvalidArgument, match=r"other\.csv cannot be read: No such file"):
        Trace.find("other.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InvalidArgument, match="it is not text"):
        Trace.find(str(tmp_path / "binary.csv"))


@pytest.mark.parametrize("name", NAMES)
def test_the_traces_of_the_package_are_those_that_are_made(name: str) -> None:
    trace = Trace.named(name)
    again = Trace.parse(made(name), name)
    assert trace.length == 120
    # Logarithms may differ in their last digit between machines.
    for ours, theirs in zip(trace.moments, again.moments, strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)


def test_what_a_trace_says_is_given_by_nothing_else() -> None:
    check_alone(None, "0ms", ())
    with pytest.raises(InvalidArgument, match="bandwidth is given together with a trace"):
        check_alone("1Mbit", "0ms", ())
    with pytest.raises(InvalidArgument, match="rtt is given together with a trace"):
        check_alone(None, "1ms", ())
    with pytest.raises(InvalidArgument, match="outages is given together with a trace"):
        check_alone(None, "0ms", [1])
