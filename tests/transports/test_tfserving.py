"""TensorFlow Serving's protocols against those of our gateway. No server of TensorFlow's own is run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.processes import eventually
from tests.transports.contract import TWO, Contract, X
from tests.transports.gateway_thread import GatewayThread, gateway_thread
from zmq_offload.errors import NotFound, Unimplemented
from zmq_offload.transports.client import ServerClient


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    with gateway_thread() as found:
        yield found


class TestGrpc(Contract):
    scheme = "tfs+grpc"

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"tfs+grpc://{gateway.grpc}"


class TestRest(Contract):
    scheme = "tfs+http"
    names_outputs = False
    large = 60_000  # numbers of JSON take long

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"tfs+http://{gateway.http}"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_what_the_gateway_hears_of_a_call(gateway: GatewayThread, scheme: str) -> None:
    with ServerClient(f"tfs+{scheme}://{getattr(gateway, scheme)}") as client:
        client.infer("double", {"x": X}, version=1, timeout=7)
        call = gateway.fabric.calls[-1]
        assert (call.model, call.version) == ("double", 1)
        if client._servers._transports[0].ABILITIES.deadline:
            assert call.timeout is not None and 6 < call.timeout < 7.1  # gRPC rounds up
        future = client.submit("slow", {"x": TWO}, timeout=60)
        canceled = gateway.fabric.canceled
        eventually(lambda: gateway.fabric.calls[-1].model == "slow")
        future.cancel()
        eventually(lambda: gateway.fabric.canceled == canceled + 1)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_values_that_are_no_numbers_come_back(gateway: GatewayThread, scheme: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    with ServerClient(f"tfs+{scheme}://{getattr(gateway, scheme)}") as client:
        np.testing.assert_array_equal(client.infer("double", {"x": x})["y"], x)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_label_is_passed_on_to_a_gateway(gateway: GatewayThread, scheme: str) -> None:
    with ServerClient(f"tfs+{scheme}://{getattr(gateway, scheme)}?label=stable") as client:
        if scheme == "http":  # a gateway looks at the model for JSON
            with pytest.raises(NotFound, match="no label 'stable'; it has no labels"):
                client.infer("double", {"x": X})
        else:
            client.infer("double", {"x": X})
            assert gateway.fabric.calls[-1].label == "stable"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_label_of_a_call_is_refused(gateway: GatewayThread, scheme: str) -> None:
    with (
        ServerClient(f"tfs+{scheme}://{getattr(gateway, scheme)}") as client,
        pytest.raises(Unimplemented, match="takes no label 'stable' of a call; ask a broker"),
    ):
        client.infer("double", {"x": X}, label="stable")
