"""Outages of the link between a device and its broker: no frame is lost with a fallback."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import zmq_offload
from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.compile import compile_model
from zmq_offload.errors import DeadlineExceeded, FailedPrecondition, OffloadError, Unavailable
from zmq_offload.testing.link import Link

X = onnx_models.random(2, 8, seed=11)
SHAPES = {"x": (2, 8)}


@dataclass
class Served:
    broker: str
    dist: Path
    mlp: Path
    expected: np.ndarray


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("outage")
    mlp = onnx_models.mlp(folder / "mlp.onnx")
    dist = folder / "dist"
    compile_model(mlp, inputs=SHAPES, cut="h2", until="h4", name="mlp", output=dist, with_fallback=True)
    workers = ["--repository", str(dist / "repository"), "--refresh", "0.2"]
    with running_broker() as fabric, running_workers(fabric.backend, *workers):
        with Client(fabric.frontend) as client:
            eventually(client.models, timeout=60)
        with zmq_offload.load(dist / "device", broker=fabric.frontend) as model:
            yield Served(fabric.frontend, dist, mlp, model(X))


@pytest.mark.parametrize("kind", ["cut", "refuse"])
def test_with_a_fallback_no_frame_is_lost_and_the_link_is_used_again_when_it_is_back(served: Served, kind: str) -> None:
    frames, results = 0, 0

    def source() -> Iterator[np.ndarray]:
        nonlocal frames
        while True:
            frames += 1
            yield X

    with (
        Link(served.broker, rtt="2ms") as link,
        zmq_offload.load(served.dist / "device", broker=link.endpoint, offload="auto") as model,
    ):
        # Computing takes microseconds here, and any link milliseconds. So the policy is told that the device is slow.
        copy = model._offload.fallbacks["mlp"]
        model._offload.fallbacks["mlp"] = Slowed(copy, 0.03)
        stream = model.map(source(), depth=3)

        def until(way: str, at_least: int = 10, timeout: float = 30.0) -> None:
            """Take results until they go this way, and then a few more."""
            nonlocal results
            end = time.monotonic() + timeout
            while model.statistics.ways["mlp"] != way or at_least:
                at_least -= model.statistics.ways["mlp"] == way and at_least > 0
                np.testing.assert_allclose(next(stream), served.expected, atol=1e-5)
                results += 1
                assert time.monotonic() < end, f"not {way}: {model.statistics}"

        until("remote", 60)
        getattr(link, kind)()
        until("local")
        link.restore()
        until("remote")
        stream.close()
        counts = model.statistics
    print(f"{kind}: {frames} frames taken, {results} results, {counts}")
    assert counts.failed == 0 and counts.fell_back >= 1
    assert 0 <= frames - results <= 3  # those in flight when it was closed


class Slowed:
    def __init__(self, copy: object, seconds: float) -> None:
        self.copy, self.seconds = copy, seconds

    def run(self, arrays: object) -> object:
        time.sleep(self.seconds)
        return self.copy.run(arrays)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["cut", "refuse"])
def test_without_a_fallback_a_lost_link_is_an_error_within_the_deadline(served: Served, kind: str) -> None:
    with (
        Link(served.broker, rtt="2ms") as link,
        zmq_offload.load(served.dist / "device", broker=link.endpoint, timeout=0.5) as model,
    ):
        results = model.map(itertools.repeat(X), depth=3, return_exceptions=True)
        assert isinstance(next(results), np.ndarray)
        getattr(link, kind)()
        began = time.monotonic()
        found = next(r for r in results if isinstance(r, OffloadError))
        assert isinstance(found, (DeadlineExceeded, Unavailable))
        assert time.monotonic() - began < 5
        link.restore()
        next(r for r in results if isinstance(r, np.ndarray))
        results.close()  # type: ignore[attr-defined]


def test_leaving_a_stream_in_an_outage_does_not_wait_for_the_deadline(served: Served) -> None:
    with (
        Link(served.broker) as link,
        zmq_offload.load(served.dist / "device", broker=link.endpoint, timeout=60.0) as model,
    ):
        stream = model.map(itertools.repeat(X), depth=4)
        next(stream)
        link.cut()
        frames = model.submit(X)
        time.sleep(0.1)
        began = time.monotonic()
        assert frames.cancel()
        stream.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 10


def test_a_served_version_with_another_signature_is_named(served: Served) -> None:
    compile_model(
        served.mlp,
        inputs={"x": (3, 8)},
        cut="h2",
        until="h4",
        name="mlp",
        version=2,
        output=served.dist.parent / "two",
        repository=served.dist / "repository",
        new_signature=True,
    )
    with zmq_offload.load(served.dist / "device", broker=served.broker, offload="always") as model:

        def refused() -> str:
            try:
                model(X)
            except FailedPrecondition as error:
                return error.message
            return ""

        with Client(served.broker) as client:
            eventually(lambda: [m["version"] for m in client.models()] == [1, 2])
        assert refused() == "", "version 1 fits and is served still"
        shutil.rmtree(served.dist / "repository" / "mlp" / "1")
        said = eventually(refused)
        assert "version 2 takes h2 FP32[3,16]" in said
        assert "this device bundle was built for one that takes h2 FP32[" in said
        model.offload = "auto"
        np.testing.assert_allclose(model(X), served.expected, atol=1e-5)
