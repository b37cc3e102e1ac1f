"""Where several broker processes listen."""

from __future__ import annotations

import pytest

from broker.config import parse
from broker.places import Place, places_of
from zmq_offload.errors import InvalidArgument

FRONT, BACK = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"


def test_one_process_listens_where_it_was_told() -> None:
    assert places_of([FRONT], [BACK], "none", None) == [Place(FRONT, BACK, "none")]
    assert places_of([FRONT], [FRONT], "none", 1) == [Place(FRONT, FRONT, "none")], "the system says that it is taken"


def test_the_default_ports_go_up_side_by_side() -> None:
    assert places_of([FRONT], [BACK], "127.0.0.1:9464", 3) == [
        Place(FRONT, BACK, "127.0.0.1:9464"),
        Place("tcp://127.0.0.1:5557", "tcp://127.0.0.1:5558", "127.0.0.1:9465"),
        Place("tcp://127.0.0.1:5559", "tcp://127.0.0.1:5560", "127.0.0.1:9466"),
    ]


def test_each_process_gets_a_port_of_its_own_from_the_system() -> None:
    any_port = Place("tcp://[::1]:0", "tcp://*:*", "127.0.0.1:0")
    assert places_of(["tcp://[::1]:0"], ["tcp://*:*"], "127.0.0.1:0", 2) == [any_port] * 2
    assert places_of(["ipc://*"], ["ipc://*"], "none", 2) == [Place("ipc://*", "ipc://*", "none")] * 2


def test_paths_get_a_number() -> None:
    assert [place.frontend for place in places_of(["ipc:///run/b"], [BACK], "none", 3)] == [
        "ipc:///run/b",
        "ipc:///run/b-1",
        "ipc:///run/b-2",
    ]


def test_endpoints_can_be_listed_and_say_how_many_processes_there_are() -> None:
    found = places_of(["tcp://10.0.0.1:1", "tcp://10.0.0.2:1"], ["tcp://10.0.0.1:2", "tcp://10.0.0.2:8"], "none", None)
    assert [place[:2] for place in found] == [
        ("tcp://10.0.0.1:1", "tcp://10.0.0.1:2"),
        ("tcp://10.0.0.2:1", "tcp://10.0.0.2:8"),
    ]


@pytest.mark.parametrize(
    ("frontends", "backends", "metrics", "processes", "text"),
    [
        ([FRONT, BACK], [BACK], "none", 3, "--frontend has 2 endpoints for 3 processes"),
        ([FRONT, BACK], [BACK], "none", 1, "--frontend has 2 endpoints for 1 process;"),
        ([FRONT], ["tcp://127.0.0.1:5557"], "none", 2, "--backend of process 0 and --frontend of process 1 are both"),
        ([FRONT], [BACK], "127.0.0.1:5558", 2, "are both"),
        (["tcp://a:65535"], [BACK], "none", 2, "would listen at port 65537"),
    ],
)
def test_what_cannot_be(
    frontends: list[str], backends: list[str], metrics: str, processes: int | None, text: str
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        places_of(frontends, backends, metrics, processes)


def test_the_options_of_a_broker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ZMQ_OFFLOAD_PROCESSES", "7")  # of workers
    assert (parse([]).frontend, len(parse([]).places)) == (FRONT, 1)
    monkeypatch.setenv("ZMQ_OFFLOAD_BROKER_PROCESSES", "2")
    assert [place.backend for place in parse([]).places] == [BACK, "tcp://127.0.0.1:5558"]
    assert len(parse(["--frontend", f"{FRONT}, ipc:///run/b", "--processes", "2"]).places) == 2
    with pytest.raises(SystemExit):
        parse(["--frontend", "tcp://a:1,tcp://b:1,tcp://c:1"])
    assert "--frontend has 3 endpoints for 2 processes" in capsys.readouterr().err
