"""The Open Inference Protocol's transports against our gateway."""

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
    scheme = "grpc"

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"grpc://{gateway.grpc}"


class TestHttp(Contract):
    scheme = "http"

    @pytest.fixture
    def server(self, gateway: GatewayThread) -> str:
        return f"http://{gateway.http}"
