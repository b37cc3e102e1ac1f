"""Which transport a URL has: our own, and those of other packages."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import ROOT
from tests.transports.bad_servers import bad_server, closing, refused_address, silent
from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.device.offload import Offload
from zmq_offload.device.turns import Turns
from zmq_offload.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    OffloadError,
    ProtocolError,
    Unavailable,
)
from zmq_offload.protocol.tensors import Latest, TensorSpec, signature_of
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.registry import BUILT_IN, check_servers, known_schemes, transport_class

EXAMPLES = ROOT / "examples"
X = np.array([1.5, -2.5], np.float32)
SPECS = (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),)
SIGNATURE = Latest(signature_of(*SPECS))
QUERY = "input=x&output=y&datatype=FP32&shape=2"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that registers the transport of the examples, as pip installs it, and others that are wrong."""
    project = (EXAMPLES / "transport" / "pyproject.toml").read_text()
    (raw,) = re.findall(r'"zmq_offload.transports"\]\nraw = "(.*)"', project)
    folder = tmp_path / "raw_transport-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: raw-transport\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[zmq_offload.transports]\nraw = {raw}\nlost = no_such_package:Transport\ngrpc = {raw}\n"
        "Big = numpy:ndarray\nodd = math:pi\n"
    )
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(tmp_path)


def doubling(connection: socket.socket) -> None:
    """A server of raw://: answers the doubles of two numbers."""
    data = connection.recv(8, socket.MSG_WAITALL)
    connection.sendall((np.frombuffer(data, np.float32) * 2).tobytes())


@pytest.fixture
def server() -> Iterator[str]:
    with bad_server(doubling) as address:  # a good one, for once
        yield f"raw://{address}?{QUERY}"


@pytest.mark.usefixtures("installed")
def test_a_transport_of_another_package_is_used(server: str) -> None:
    with ServerClient(server) as client:
        for version in (None, SIGNATURE):
            outputs = client.infer("m", {"x": X}, version=version)
            assert outputs["y"].tolist() == [3, -5] and outputs.version == 0
        with pytest.raises(InvalidArgument, match=r"model 'm'.*'w' is not known"):
            client.infer("m", {"w": X})
        subject = Offload(client, [OffloadedRegion("symbol", "m", "latest", *SPECS)], {}, Turns(1))
        assert subject.infer("m", {"x": X}, version=SIGNATURE)["y"].tolist() == [3, -5]


@pytest.mark.usefixtures("installed")
def test_it_keeps_the_rules_of_a_transport(server: str) -> None:
    with bad_server(silent) as address, ServerClient(f"raw://{address}?{QUERY}") as client:
        with pytest.raises(DeadlineExceeded):
            client.infer("m", {"x": X}, timeout=0.1)
        assert client.submit("m", {"x": X}, timeout=60).cancel()
    with (
        bad_server(closing) as address,
        ServerClient(f"raw://{address}?{QUERY}") as client,
        pytest.raises((ProtocolError, Unavailable)),
    ):
        client.infer("m", {"x": X})
    with ServerClient([f"raw://{refused_address()}?{QUERY}", server]) as client:
        assert client.infer("m", {"x": X})["y"].tolist() == [3, -5]


@pytest.mark.usefixtures("installed")
def test_a_scheme_of_ours_cannot_be_replaced() -> None:
    assert known_schemes() == [*BUILT_IN, "Big", "lost", "odd", "raw"]
    assert transport_class("big") is np.ndarray, "schemes have no case"
    assert transport_class("grpc").__name__ == "OipGrpc" and transport_class("raw").__name__ == "RawTransport"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("lost://edge:1", FailedPrecondition, "the transport lost:// of no_such_package:Transport cannot be imported"),
        ("odd://edge:1", FailedPrecondition, "the transport odd:// is math:pi, which is not a class"),
        ("rav://edge:1", InvalidArgument, "no transport is known for rav://.*did you mean.*raw.*known are tcp://"),
        (f"raw://edge:1?{QUERY}&color=red", InvalidArgument, "has 'color' after the question mark; known are input"),
        ("raw://edge:1", InvalidArgument, "raw://edge:1 needs"),
    ],
)
def test_what_cannot_be_opened_says_why(url: str, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says):
        ServerClient(url)


def test_servers_are_a_url_or_several() -> None:
    assert check_servers("a") == ["a"] and check_servers(("a", "b")) == ["a", "b"]
    for wrong, says in (([], "the list of servers is empty"), (5, "is not a URL"), (b"grpc://a:1", "is not a URL")):
        with pytest.raises(InvalidArgument, match=says):
            check_servers(wrong)  # type: ignore[arg-type]
