"""The contract's models as libraries, and TVM's own server, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transports.tvmrpc.servers import plain_server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.transports.tvmrpc.models import contract_repository

    return contract_repository(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="session")
def plain() -> Iterator[str]:
    """The URL of TVM's own server as it is."""
    with plain_server() as (url, _):
        yield url
