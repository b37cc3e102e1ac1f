"""Fixtures: a broker and workers for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zmq_offload import Client
from zmq_offload.testing import Fabric


@pytest.fixture(scope="module")
def echo_fabric() -> Iterator[Fabric]:
    """A broker and two echo workers, for tests that do not stop or change them."""
    with Fabric(workers=2) as fabric:
        yield fabric


@pytest.fixture
def client(echo_fabric: Fabric) -> Iterator[Client]:
    with Client(echo_fabric.frontend) as client:
        yield client
