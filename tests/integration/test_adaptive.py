"""Adaptive bundles against real brokers and workers."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import zmq_offload
from tests.support.processes import Fabric, Process, eventually, running_broker, running_workers
from tests.support.split_bundles import CUTS, SplitNet, write_bundle, write_models
from zmq_offload import Client
from zmq_offload.artifacts import configedit
from zmq_offload.artifacts.repository import Repository
from zmq_offload.device.offloaded_model import OffloadedModel
from zmq_offload.errors import Unavailable
from zmq_offload.testing.link import Link

NET = SplitNet(widths=(512, 2048, 16, 8))  # 2 KB, 8 KB and 64 bytes cross
X = np.random.default_rng(3).random((1, NET.widths[0]), np.float32)
Y = NET.expected(X)


@dataclass
class Served:
    fabric: Fabric
    workers: Process
    folder: Path

    @property
    def repository(self) -> Repository:
        return Repository(self.folder / "repository")

    def wait_for(self, count: int) -> None:
        with Client(self.fabric.frontend) as client:
            eventually(lambda: len(client.models()) == count, timeout=60)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adaptive")
    write_models(Repository(folder / "repository"), NET)
    write_bundle(folder / "device", NET)
    return folder


@pytest.fixture
def served(built: Path, tmp_path: Path) -> Iterator[Served]:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    options = ["--repository", str(tmp_path / "repository"), "--refresh", "0.1", "--processes", "1", "--threads", "1"]
    broker = running_broker("--restart-grace", "0.2", "--worker-grace", "0.2")
    with broker as fabric, running_workers(fabric.backend, *options) as workers:
        found = Served(fabric, workers, tmp_path)
        found.wait_for(len(CUTS))
        yield found


def check(found: object) -> None:
    np.testing.assert_allclose(found, Y, rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]


def call_until(model: OffloadedModel, condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        check(model(X))
        assert time.monotonic() < end, model.statistics


def test_all_ways_of_calling_and_each_split_by_name(served: Served) -> None:
    async def several(model: OffloadedModel) -> None:
        check(await model.acall(X))
        async for found in model.amap([X] * 3):
            check(found)

    with zmq_offload.load(served.folder / "device", served.fabric.frontend) as model:
        check(model(X))
        check(model(x=X))
        for found in model.map([X] * 12, depth=4):
            check(found)
        check(model.submit(X).result())
        asyncio.run(several(model))
        counts = model.statistics
        assert counts[:4] == (19, 0, 0, 0) and sum(counts.splits.values()) == 19 and min(counts.splits.values()) > 0
        assert counts.choice is not None and counts.choice.measured > 0 and counts.choice.why
    for cut in CUTS:
        with zmq_offload.load(served.folder / "device", served.fabric.frontend, split=cut) as model:
            check(model(X))
            assert model.statistics.splits == {cut: 1}


@pytest.mark.chaos
def test_a_split_that_vanishes_is_left_out_and_used_again_when_it_is_back(served: Served) -> None:
    vanishing = NET.model("narrow")
    with (
        Link(served.fabric.frontend, bandwidth="500kbit") as link,  # what x and wide send takes long
        zmq_offload.load(served.folder / "device", link.endpoint) as model,
    ):
        call_until(model, lambda: model.statistics.splits["narrow"] > 10)
        configedit.unload(served.repository, vanishing)
        served.wait_for(2)
        before = model.statistics.splits
        for _ in range(5):
            check(model(X))
        after = model.statistics
        assert after.splits["narrow"] == before["narrow"] and after.failed == 0
        for cut in ("x", "wide"):
            configedit.unload(served.repository, NET.model(cut))
        served.wait_for(0)
        with pytest.raises(Unavailable, match="no worker that holds model"):
            model(X)
        for cut in CUTS:
            configedit.load(served.repository, NET.model(cut))
        served.wait_for(3)
        call_until(model, lambda: model.statistics.splits["narrow"] > before["narrow"])
        assert model.statistics.failed == 1


@pytest.mark.chaos
def test_the_device_goes_on_by_itself_while_workers_are_gone(served: Served) -> None:
    with zmq_offload.load(served.folder / "device", served.fabric.frontend, offload="auto") as model:
        call_until(model, lambda: model.statistics.offloaded >= 3)
        assert served.workers.end(signal.SIGKILL) != 0
        for _ in range(20):
            check(model(X))
        assert model.statistics.failed == 0 and model.statistics.local + model.statistics.fell_back > 0
        before = model.statistics.offloaded
        options = ["--repository", str(served.repository.root), "--processes", "1", "--threads", "1"]
        with running_workers(served.fabric.backend, *options):
            served.wait_for(len(CUTS))
            call_until(model, lambda: model.statistics.offloaded > before)
