"""`plan --link measure`: the round trip and both bandwidths of a link, by requests to a real broker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.plan.test_plan import no_fabric  # noqa: F401
from zmq_offload.cli.main import main
from zmq_offload.plan import measured_link, planning
from zmq_offload.plan.costs import Network, Overhead
from zmq_offload.plan.files import Plan
from zmq_offload.plan.measured_link import measure_link
from zmq_offload.testing.fabric import Fabric
from zmq_offload.testing.link import Link


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_link, "_LONG", 0.01)
    monkeypatch.setattr(measured_link, "_TIMES", 2)


def test_both_ways_are_measured_with_a_worker_that_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Fabric() as fabric, Link(fabric.frontend, bandwidth="20Mbit", rtt="10ms") as link:
        found, both = measure_link(link.endpoint)
        monkeypatch.setattr(measured_link, "ECHO", "nothing-like-this")
        alone, not_both = measure_link(link.endpoint)
    assert both and not not_both and not alone.down
    # How near they are is for a machine that is not busy: within 2 % from 5 to 500 Mbit/s.
    assert 2e6 < found.bandwidth < 40e6 and found.down > 1e6
    assert 0.009 < found.rtt < 0.5


def test_without_one_the_way_back_counts_as_the_way_there(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        measured_link, "measure_link", lambda broker: asked.append(broker) or (Network(5e7, 0.01), False)
    )
    monkeypatch.setattr(planning, "measure_overhead", Overhead)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    options = ["--input", "x=1,3,16,16", "--server-threads", "1", "--repeat", "3", "--confirm", "0"]
    options += ["--link", "measure", "--broker", "tcp://edge:5555", "-o", str(tmp_path / "plan.png")]
    assert main(["plan", str(convnet), *options]) == 0
    said = capsys.readouterr()
    assert asked == [("tcp://edge:5555",)]
    assert "no worker serves 'echo', so the way back counts as fast as the way there" in said.err
    assert "50Mbit each way, round trip 10 ms" in said.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "the link is missing; give --bandwidth and --rtt, or --link"),
        (["--bandwidth", "5Mbit"], "the link is missing; give --bandwidth and --rtt, or --link"),
        (["--link", "measure", "--rtt", "1ms"], "--link stands for --bandwidth and --rtt; leave them out"),
    ],
)
def test_a_link_is_given_once(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", sys.argv[0], *options])
    assert says in capsys.readouterr().err


def test_a_recorded_link_is_read_from_a_file(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_overhead", Overhead)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,up,down,delay,stall\n0,8,4,10,0\n3,0.8,0.4,30,0\n")
    options = ["--input", "x=1,3,16,16", "--server-threads", "1", "--repeat", "3", "--confirm", "0", "--quiet"]
    options += ["-o", str(tmp_path / "plan.png"), "--cuts", "2", "--device-slowdown", "10000"]
    assert main(["plan", str(convnet), *options, "--link", str(trace), "--save", str(tmp_path / "plan.json")]) == 0
    said = capsys.readouterr().out
    assert "1.45Mbit up, 727kbit down" in said
    assert "800kbit" in said and "8Mbit" in said and "--cuts" in said
    cuts = Plan.read(tmp_path / "plan.json").cuts
    assert 1 <= len(cuts) <= 2 and all(set(own.predicted) == set(own.wires) for own in cuts)
    trace.write_text("nothing")
    assert main(["plan", str(convnet), *options, "--link", str(trace)]) == 1
    assert "trace.csv is not a trace: line 1 is 'nothing'; expected seconds,up" in capsys.readouterr().err
    assert main(["plan", str(convnet), *options, "--link", str(tmp_path / "none.csv")]) == 1
    assert "none.csv cannot be read" in capsys.readouterr().err
