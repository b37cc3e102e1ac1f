"""A device bundle whose region runs on a server of another kind than a broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.gateway.fake_fabric import FakeFabric
from tests.support.local_client import LocalClient
from tests.transports.bad_servers import refused_address
from tests.transports.gateway_thread import GatewayThread, gateway_thread
from zmq_offload import load
from zmq_offload.errors import FailedPrecondition, Unavailable
from zmq_offload.gateway.catalog import Model

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

X = np.random.default_rng(0).standard_normal((1, 1448)).astype(np.float32)


@pytest.fixture(scope="module")
def gateway(compiled_wide: Compiled) -> Iterator[GatewayThread]:
    worker = LocalClient(compiled_wide.subgraphs[0].parent.parent)
    wide = worker.repository.read("wide", 1)
    served = Model("wide", 1, wide.inputs, wide.outputs, workers=1, latest=True)
    fabric = FakeFabric(served, run=lambda call: worker.infer(call.model, call.inputs, version=call.version))
    with gateway_thread(fabric=fabric) as found:
        yield found


@pytest.fixture(scope="module")
def expected(compiled_wide: Compiled) -> np.ndarray:
    client = LocalClient(compiled_wide.subgraphs[0].parent.parent)
    with load(compiled_wide.device, client=client) as model:
        return model(X)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_bundle_runs_on_a_server_as_through_a_broker(
    compiled_wide: Compiled, gateway: GatewayThread, expected: np.ndarray, scheme: str
) -> None:
    url = f"{scheme}://{getattr(gateway, scheme)}"
    for servers in (url, [f"http://{refused_address()}", f"grpc://{refused_address()}", url]):
        with load(compiled_wide.device, server=servers, timeout=9) as model:
            assert np.array_equal(model(X), expected)
            assert all(np.array_equal(y, expected) for y in model.map([X] * 5, depth=3))
            assert model.statistics.offloaded == 6


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_without_its_server_a_bundle_falls_back(compiled_wide: Compiled, scheme: str) -> None:
    with load(compiled_wide.device, server=f"{scheme}://{refused_address()}", timeout=5) as model:
        with pytest.raises(Unavailable):
            model(X)
        model.offload = "auto"
        for _ in range(5):
            model(X)
        assert model.statistics.fell_back


def test_a_server_with_another_model_says_what_differs(compiled_wide: Compiled, gateway: GatewayThread) -> None:
    [served] = gateway.fabric.catalog.models  # type: ignore[union-attr]
    other = Model("wide", 1, served.outputs, (), workers=1, latest=True)
    with (
        gateway_thread(fabric=FakeFabric(other)) as wrong,
        load(compiled_wide.device, server=f"http://{wrong.http}") as model,
        pytest.raises(FailedPrecondition, match="this device bundle was built for one that takes"),
    ):
        model(X)
