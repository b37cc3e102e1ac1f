"""Fixtures: a broker and workers for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes import Fabric, running_broker, running_workers, wait_for_workers
from zmq_offload import Client


@pytest.fixture(scope="module")
def echo_fabric() -> Iterator[Fabric]:
    """A broker and two echo workers, for tests that do not stop or change them."""
    with running_broker() as fabric, running_workers(fabric.backend, "--executor", "echo", "--processes", "2"):
        wait_for_workers(fabric.frontend, 2)
        yield fabric


@pytest.fixture
def client(echo_fabric: Fabric) -> Iterator[Client]:
    with Client(echo_fabric.frontend) as client:
        yield client
