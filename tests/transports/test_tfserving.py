"""TensorFlow Serving's protocols against those of our gateway. No server of TensorFlow's own is run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.transports.contract import Contract
from tests.transports.gateway_thread import GatewayThread, gateway_thread


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

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"tfs+http://{gateway.http}"
