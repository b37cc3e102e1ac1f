"""The Open Inference Protocol's transports against our gateway."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.processes import eventually
from tests.transports.contract import TWO, Contract, X
from tests.transports.gateway_thread import GatewayThread, gateway_thread
from zmq_offload.errors import Unavailable
from zmq_offload.transports.client import ServerClient


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    with gateway_thread() as found:
        yield found


class TestGrpc(Contract):
    scheme = "grpc"

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"grpc://{gateway.grpc}"


class TestHttp(Contract):
    scheme = "http"

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"http://{gateway.http}"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_hosts_have_names(gateway: GatewayThread, scheme: str) -> None:
    port = getattr(gateway, scheme).rpartition(":")[2]
    with ServerClient([f"{scheme}://no-such-host.invalid:{port}", f"{scheme}://localhost:{port}"]) as client:
        np.testing.assert_array_equal(client.infer("double", {"x": X})["y"], X * 2)
    with ServerClient(f"{scheme}://no-such-host.invalid:{port}") as client, pytest.raises(Unavailable):
        client.infer("double", {"x": X}, timeout=20)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_what_the_gateway_hears_of_a_call(gateway: GatewayThread, scheme: str) -> None:
    with ServerClient(f"{scheme}://{getattr(gateway, scheme)}") as client:
        client.infer("double", {"x": X}, version=1, timeout=7, priority=-3)
        call = gateway.fabric.calls[-1]
        assert (call.model, call.version, call.priority) == ("double", 1, -3)
        assert call.timeout is not None and 6 < call.timeout < 7.1  # gRPC rounds up
        future = client.submit("slow", {"x": TWO}, timeout=60)
        canceled = gateway.fabric.canceled
        eventually(lambda: gateway.fabric.calls[-1].model == "slow")
        future.cancel()
        eventually(lambda: gateway.fabric.canceled == canceled + 1)
