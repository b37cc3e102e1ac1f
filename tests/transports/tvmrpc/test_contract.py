"""What every transport has to keep, by our function on the server, and by libraries that TVM's own server gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transports.contract import TWO, Contract
from tests.transports.tvmrpc.servers import our_server
from zmq_offload.errors import Internal
from zmq_offload.transports.client import ServerClient


@pytest.fixture(scope="module")
def ours(repository: Path) -> Iterator[str]:
    with our_server(repository) as (url, _):
        yield url


class TestByOurFunction(Contract):
    scheme = "tvmrpc"
    names_outputs = False  # they are those of the description
    both = 3.0  # the server starts a process for a connection

    @pytest.fixture
    def server(self, ours: str) -> str:
        return ours

    def test_a_model_that_fails_says_why(self, shared: ServerClient) -> None:
        # TVM's runtime, without its Python, has no assertions of Relax.
        with pytest.raises(Internal, match=r"Cannot find ffi::Function relax\.run\.assert_op"):
            shared.infer("fails", {"x": TWO})


@pytest.mark.load
class TestByUploads(Contract):
    scheme = "tvmrpc"
    names_outputs = False
    both = 3.0

    @pytest.fixture
    def server(self, plain: str, repository: Path) -> str:
        return f"{plain}?repository={repository}"
