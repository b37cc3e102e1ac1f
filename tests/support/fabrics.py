"""Fixtures: a broker and workers for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.processes import Gateway, running_broker, running_gateway, signed_workers, wait_for_workers
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


@contextmanager
def gateway_of_signed_models(*options: str) -> Iterator[Gateway]:
    """A gateway in front of a broker and one worker with the models of `tests.support.signed_worker`."""
    with running_broker() as broker, signed_workers(broker.backend):
        wait_for_workers(broker.frontend, 1)
        with running_gateway(broker.frontend, options=options) as gateway:
            yield gateway
