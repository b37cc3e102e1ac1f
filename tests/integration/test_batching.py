"""Requests that run together on a real worker: each gets its own rows, and a wrong one fails alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.artifacts.repository import Batching
from zmq_offload.compile import compile_model
from zmq_offload.errors import DeadlineExceeded, InvalidArgument, OffloadError

WIDTH = 16
WEIGHT = onnx_models.random(WIDTH, 8, seed=2)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mlp` batches up to 8 rows, `plain` is the same without batching, `fixed` has two rows."""
    folder = tmp_path_factory.mktemp("batching")
    path = onnx_models.mlp(folder / "mlp.onnx", WIDTH)
    for name, rows, batching in (("mlp", "N", Batching(8, 2000)), ("plain", "N", None), ("fixed", 2, None)):
        output = folder / name
        shared = {"cut": ["h2"], "until": ["h4"], "repository": folder / "repository"}
        compile_model(path, inputs={"x": (rows, 8)}, name=name, output=output, batching=batching, **shared)
    return folder / "repository"


@contextmanager
def serving(repository: Path, *options: str) -> Iterator[str]:
    common = ["--repository", str(repository), "--threads", "1"]
    with running_broker() as fabric, running_workers(fabric.backend, *common, *options):
        with Client(fabric.frontend) as client:
            eventually(lambda: len(client.models()) == 3, timeout=60)
        yield fabric.frontend


@pytest.fixture(scope="module")
def endpoint(repository: Path) -> Iterator[str]:
    with serving(repository) as frontend:
        yield frontend


def rows(many: int, seed: int) -> np.ndarray:
    return onnx_models.random(many, WIDTH, seed=seed)


def expected(h2: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-(h2 @ WEIGHT)))
    return result


def test_many_clients_at_a_time_each_get_their_own_rows(endpoint: str) -> None:
    def run(number: int) -> None:
        with Client(endpoint) as client:
            for at in range(20):
                x = rows(1 + (number + at) % 3, seed=100 * number + at)
                found = client.infer("mlp", {"h2": x}, timeout=30)["h4"]
                np.testing.assert_allclose(found, expected(x), atol=1e-5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(run, range(16)))


def test_requests_that_do_not_fit_fail_alone(endpoint: str) -> None:
    bad = {
        "wide": np.zeros((1, WIDTH + 1), "f4"),
        "double": np.zeros((1, WIDTH), "f8"),
        "many": np.zeros((9, WIDTH), "f4"),
        "none": np.zeros((1, 1, WIDTH), "f4"),
    }
    with Client(endpoint) as client:
        wrong = {}
        right = []
        for at in range(10):
            for what, x in bad.items():
                wrong[what, at] = client.submit("mlp", {"h2": x}, timeout=30)
            right.append(client.submit("mlp", {"h2": rows(2, seed=at)}, timeout=30))
        for at, future in enumerate(right):
            np.testing.assert_allclose(future.result()["h4"], expected(rows(2, seed=at)), atol=1e-5)
        for future in wrong.values():
            with pytest.raises(InvalidArgument):
                future.result()
        with pytest.raises(InvalidArgument, match="the batch has 9 rows; it takes at most 8"):
            wrong["many", 0].result()
        assert {model["name"]: model.get("max_batch") for model in client.models()}["mlp"] == 8


def test_an_empty_batch_is_answered(endpoint: str) -> None:
    with Client(endpoint) as client:
        together = [client.submit("mlp", {"h2": rows(many, seed=5)}, timeout=30) for many in (0, 1, 0, 2)]
        for many, future in zip((0, 1, 0, 2), together, strict=True):
            np.testing.assert_allclose(future.result()["h4"], expected(rows(many, seed=5)), atol=1e-5)


def test_a_client_that_sends_full_batches_itself_is_served(endpoint: str) -> None:
    with Client(endpoint) as client:
        futures = [client.submit("mlp", {"h2": rows(8, seed=at)}, timeout=30) for at in range(6)]
        for at, future in enumerate(futures):
            np.testing.assert_allclose(future.result()["h4"], expected(rows(8, seed=at)), atol=1e-5)


def test_a_workers_options_override_the_model_and_deadlines_count_while_a_batch_gathers(repository: Path) -> None:
    # The delay is a minute. A request that is answered earlier was in a full batch, or ran alone in a new group.
    with (
        serving(repository, "--max-batch", "2", "--batch-delay", "60000000") as frontend,
        Client(frontend) as client,
    ):
        for model in ("mlp", "plain"):
            with pytest.raises(InvalidArgument, match="the batch has 3 rows; it takes at most 2"):
                client.infer(model, {"h2": rows(3, seed=0)})
        assert eventually(lambda: _gathers(client), timeout=60)
        pair = [client.submit("plain", {"h2": rows(1, seed=at)}, timeout=30) for at in range(2)]
        assert [future.result()["h4"].shape for future in pair] == [(1, 8)] * 2
        assert client.infer("fixed", {"h2": rows(2, seed=0)}, timeout=30)["h4"].shape == (2, 8)


def _gathers(client: Client) -> bool:
    """Send many requests, so that some run together. Returns whether a single one then waits for a batch until its
    deadline. The last of the many may wait so, too."""
    crowd = [client.submit("plain", {"h2": rows(1, seed=at)}, timeout=1.5) for at in range(9)]
    for at, future in enumerate(crowd):
        error = future.exception()
        if error is None:
            np.testing.assert_allclose(future.result()["h4"], expected(rows(1, seed=at)), atol=1e-5)
        else:
            assert isinstance(error, DeadlineExceeded), error
    try:
        client.infer("plain", {"h2": rows(1, seed=0)}, timeout=0.5)
    except DeadlineExceeded:
        return True
    return False


def test_without_batching_any_number_of_rows_runs(endpoint: str) -> None:
    with Client(endpoint) as client:
        assert client.infer("plain", {"h2": rows(50, seed=0)}, timeout=30)["h4"].shape == (50, 8)
        with pytest.raises(OffloadError):
            client.infer("fixed", {"h2": rows(3, seed=0)}, timeout=30)
