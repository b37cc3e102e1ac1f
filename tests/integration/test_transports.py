"""One device bundle over every transport: real servers of one subgraph, and the broker's results to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.benchmarks.transport_servers import fabric_and_gateway, tvmrpc
from tests.support import onnx_models
from tests.support.processes import running_gateway
from zmq_offload import load

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

ITEMS = [onnx_models.random(2, 8, seed=seed) for seed in range(12)]
SCHEMES = ("grpc", "http", "tfs+grpc", "tfs+http", "tvmrpc", "tvmrpc as it is")


@pytest.fixture(scope="module")
def urls(compiled_mlp: Compiled) -> Iterator[dict[str, str]]:
    """The URL of each server by its scheme; TVM's RPC server is there twice."""
    repository = compiled_mlp.subgraphs[0].parent.parent
    with fabric_and_gateway(repository, "mlp") as ways, tvmrpc(repository) as more:
        ours, plain = more
        yield {way.scheme: way.url for way in ways} | {"tvmrpc": ours.url, "tvmrpc as it is": plain.url}


@pytest.fixture(scope="module")
def expected(compiled_mlp: Compiled, urls: dict[str, str]) -> list[np.ndarray]:
    """The results through the broker."""
    with load(compiled_mlp.device, broker=urls["tcp"]) as model:
        return [model(x) for x in ITEMS]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_results_are_the_brokers_to_the_last_bit(
    compiled_mlp: Compiled, urls: dict[str, str], expected: list[np.ndarray], scheme: str
) -> None:
    with load(compiled_mlp.device, server=urls[scheme]) as model:
        alone, piped = [model(x) for x in ITEMS], list(model.map(ITEMS, depth=4))
    assert [y.tobytes() for y in alone] == [y.tobytes() for y in expected]
    assert [y.tobytes() for y in piped] == [y.tobytes() for y in expected]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_when_a_server_is_lost_a_broker_takes_its_place(
    compiled_mlp: Compiled, urls: dict[str, str], expected: list[np.ndarray], scheme: str
) -> None:
    with running_gateway(urls["tcp"]) as gateway:
        first = f"{scheme}://{getattr(gateway, scheme)}"
        with load(compiled_mlp.device, server=[first, urls["tcp"]], timeout=20) as model:
            results = model.map(ITEMS, depth=4)
            found = [next(results) for _ in range(4)]
            gateway.process.kill()
            found += list(results)
    assert [y.tobytes() for y in found] == [y.tobytes() for y in expected]
