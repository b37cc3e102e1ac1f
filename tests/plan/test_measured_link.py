"""`plan --link measure`: the round trip and both bandwidths of a link, by requests to a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.test_plan import no_fabric  # noqa: F401
from zmq_offload.cli.main import main
from zmq_offload.errors import InvalidArgument
from zmq_offload.plan import measured_link, planning
from zmq_offload.plan.costs import Network
from zmq_offload.plan.links import Period, network_of
from zmq_offload.plan.measured_link import measure_link
from zmq_offload.testing.fabric import Fabric
from zmq_offload.testing.link import Link


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_link, "_LONG", 0.01)
    monkeypatch.setattr(measured_link, "_TIMES", 2)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")


def test_both_ways_are_measured_with_a_worker_that_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Fabric() as fabric, Link(fabric.frontend, bandwidth="20Mbit", rtt="10ms") as link:
        found, both = measure_link(link.endpoint)
        monkeypatch.setattr(measured_link, "ECHO", "nothing-like-this")
        alone, not_both = measure_link(link.endpoint)
    assert both and not not_both and not alone.down
    # How near they are is for a machine that is not busy: within 2 % from 5 to 500 Mbit/s.
    assert 2e6 < found.bandwidth < 40e6 and found.down > 1e6
    assert 0.009 < found.rtt < 0.5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[planning.Question]:
    """What the planner is asked; it refuses to answer."""
    found: list[planning.Question] = []

    def refuse(question: planning.Question, progress: object) -> None:
        found.append(question)
        raise InvalidArgument("not now")

    monkeypatch.setattr(planning, "make_plan", refuse)
    return found


def test_without_one_the_way_back_counts_as_the_way_there(
    asked: list[planning.Question], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = []
    monkeypatch.setattr(
        measured_link, "measure_link", lambda broker: brokers.append(broker) or (Network(5e7, 0.01), False)
    )
    assert main(["plan", "m.onnx", "--link", "measure", "--broker", "tcp://edge:5555"]) == 1
    assert brokers == [("tcp://edge:5555",)] and asked[0].network == Network(5e7, 0.01)
    assert "no worker serves 'echo', so the way back counts as fast as the way there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "the link is missing; give --bandwidth and --rtt, or --link"),
        (["--bandwidth", "5Mbit"], "the link is missing; give --bandwidth and --rtt, or --link"),
        (["--link", "measure", "--rtt", "1ms"], "--link stands for --bandwidth and --rtt; leave them out"),
        (
            ["--link", "measure", "--tensors", "2", "--device-profile", "phone.json"],
            "profiles are of cuts at up to 4 tensors; leave --tensors out",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", __file__, *options])
    assert says in capsys.readouterr().err


def test_a_recorded_link_is_read_from_a_file(
    asked: list[planning.Question], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,up,down,delay,stall\n0,8,4,10,0\n3,0.8,0.4,30,0\n")
    assert main(["plan", "m.onnx", "--link", str(trace), "--cuts", "2"]) == 1
    assert asked[0].cuts == 2
    assert asked[0].network == network_of([Period(3.0, 8e6, 4e6, 0.01, False), Period(3.0, 8e5, 4e5, 0.03, False)])
    capsys.readouterr()
    trace.write_text("nothing")
    assert main(["plan", "m.onnx", "--link", str(trace)]) == 1
    assert "trace.csv: line 1 is 'nothing'; expected seconds,up" in capsys.readouterr().err
    assert main(["plan", "m.onnx", "--link", str(tmp_path / "none.csv")]) == 1
    assert "none.csv cannot be read" in capsys.readouterr().err
