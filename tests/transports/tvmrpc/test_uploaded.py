"""TVM's own RPC server as it is: libraries are uploaded to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import eventually
from zmq_offload.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.tvmrpc.session import Session

TWO = np.array([1.5, -2.5], np.float32)


def session(client: ServerClient) -> Session:
    found: Any = client._servers._transports[0]
    opened: Session = found._open[0]
    return opened


class Counted:
    """Counts the calls of a session, each a round trip, and their packets."""

    def __init__(self, client: ServerClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trips: list[int] = []
        self.sent = 0
        real = Session.call

        def call(this: Session, buffers: Any, attempt: Any, expected: int = 1, **options: Any) -> list[memoryview]:
            self.trips.append(expected)
            self.sent += sum(len(one) for one in buffers)
            return real(this, buffers, attempt, expected, **options)

        monkeypatch.setattr(Session, "call", call)


def test_a_request_is_two_round_trips_and_its_library_travels_once(
    plain: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = (repository / "moved" / "1" / "subgraph.so").stat().st_size
    with ServerClient(f"{plain}?repository={repository}") as client:
        counted = Counted(client, monkeypatch)
        np.testing.assert_array_equal(client.infer("moved", {"x": TWO}, version=1)["y"], TWO * 2)
        assert counted.sent > library
        counted.trips, counted.sent = [], 0
        np.testing.assert_array_equal(client.infer("moved", {"x": -TWO}, version=1)["y"], TWO * -2)
        # The input, set_input, invoke_stateful and get_output; then the output, and it is freed.
        assert counted.trips == [4, 2]
        assert counted.sent < 1000


def test_calls_of_several_models_run_together_in_one_session(plain: str, repository: Path) -> None:
    with ServerClient(f"{plain}?repository={repository}") as client:
        rows = [np.full((1 + number % 3, 3), number, np.float32) for number in range(20)]
        double = [client.submit("double", {"x": x}) for x in rows]
        moved = [client.submit("moved", {"x": x.reshape(-1)[:2]}, version=1) for x in rows]
        for x, one, other in zip(rows, double, moved, strict=True):
            np.testing.assert_array_equal(one.result(20)["y"], x * 2)
            np.testing.assert_array_equal(other.result(20)["y"], x.reshape(-1)[:2] * 2)


@pytest.mark.load
def test_what_a_call_that_is_given_up_leaves_on_the_server_is_freed(plain: str, repository: Path) -> None:
    with ServerClient(f"{plain}?repository={repository}") as client:
        client.infer("slow", {"x": TWO}, timeout=30)
        client.infer("double", {"x": np.ones((1, 3), np.float32)})
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                client.infer("slow", {"x": TWO}, timeout=0.1)
        found = client.infer("double", {"x": np.ones((4, 3), np.float32)}, timeout=30)["y"]  # more rows than before
        np.testing.assert_array_equal(found, np.full((4, 3), 2, np.float32))
        waiting = session(client)._waiting
        eventually(lambda: client.infer("double", {"x": TWO[:0].reshape(0, 3)}) is not None and not waiting)


def test_a_large_output_is_refused_and_the_session_goes_on(plain: str, repository: Path) -> None:
    with ServerClient(f"{plain}?repository={repository}", max_frame_bytes=1000) as client:
        assert client.infer("double", {"x": np.ones((80, 3), np.float32)})["y"].shape == (80, 3)
        transport: Any = client._servers._transports[0]
        transport._open[1]._most = 100
        with pytest.raises(ResourceExhausted, match="an output has 960 bytes; the client's max_frame_bytes allows 100"):
            client.infer("double", {"x": np.ones((80, 3), np.float32)})
        assert client.infer("double", {"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("cpu", "text"),
    [
        ({"architecture": "riscv64", "features": []}, "was built for riscv64, the CPU of the TVM RPC server"),
        ({"architecture": None, "features": ["nonsense"]}, "was built for a CPU with nonsense, which the"),
    ],
)
def test_a_library_for_another_cpu_is_not_uploaded(
    plain: str, repository: Path, tmp_path: Path, cpu: dict[str, Any], text: str
) -> None:
    from zmq_offload.artifacts.cpu import this_cpu
    from zmq_offload.artifacts.repository import Repository

    cpu["architecture"] = cpu["architecture"] or this_cpu()[0]
    other = Repository(tmp_path)

    def build(place: Path) -> Any:
        (place / "subgraph.so").write_bytes((repository / "moved" / "1" / "subgraph.so").read_bytes())
        described = json.loads((repository / "moved" / "1" / "model.json").read_text())
        return type(Repository(repository).read("moved", 1)).from_json({**described, "cpu": cpu})

    other.write("moved", 1, build)
    with ServerClient(f"{plain}?repository={tmp_path}") as client:
        with pytest.raises(FailedPrecondition, match=text):
            client.infer("moved", {"x": TWO})
        with pytest.raises(NotFound, match="its models are moved"):
            client.infer("other", {"x": TWO})


def test_a_file_that_is_no_library_is_refused(plain: str, repository: Path, tmp_path: Path) -> None:
    from zmq_offload.artifacts.repository import Repository

    def build(place: Path) -> Any:
        (place / "subgraph.so").write_bytes(b"no library")
        return Repository(repository).read("moved", 1)

    Repository(tmp_path).write("moved", 1, build)
    with (
        ServerClient(f"{plain}?repository={tmp_path}") as client,
        pytest.raises(FailedPrecondition, match=r"refuses: .*(file too short|invalid ELF header)"),
    ):
        client.infer("moved", {"x": TWO})


def test_without_a_repository_a_server_without_our_function_is_refused(plain: str) -> None:
    with (
        ServerClient(plain) as client,
        pytest.raises(FailedPrecondition, match=r"or give \?repository=DIR here, from where libraries are uploaded"),
    ):
        client.infer("moved", {"x": TWO})
