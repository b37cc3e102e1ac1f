"""Workers load a new version while they serve, in turn, and announce it when it is ready."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.processes import Fabric, Process, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.compile import compile_model

H2 = {"h2": np.ones((2, 16), "f4")}


class Served(NamedTuple):
    repository: Path
    hold: Path
    fabric: Fabric
    workers: Process

    def publish(self, version: int) -> Path:
        folder = self.repository / "mlp"
        draft = Path(shutil.copytree(folder / "1", folder / f".{version}"))
        described = json.loads((draft / "model.json").read_text()) | {"version": version}
        (draft / "model.json").write_text(json.dumps(described))
        return draft.rename(folder / str(version))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reload")
    path = onnx_models.mlp(folder / "m.onnx")
    compile_model(path, inputs={"x": (2, 8)}, cut=["h2"], until=["h4"], name="mlp", output=folder)
    return folder / "repository"


@pytest.fixture
def served(repository: Path, tmp_path: Path) -> Iterator[Served]:
    """Two workers, one version, and a file: while it exists, no other version finishes loading."""
    own = Path(shutil.copytree(repository, tmp_path / "repository"))
    hold = tmp_path / "hold"
    hold.touch()
    options = ["--repository", str(own), "--refresh", "0.1", "--processes", "2"]
    with (
        running_broker() as fabric,
        running_workers(
            fabric.backend, *options, program="tests.support.faulty_worker", HOLD_LOADS=str(hold)
        ) as workers,
    ):
        with Client(fabric.frontend) as client:
            eventually(lambda: [m["workers"] for m in client.models()] == [2], timeout=60)
        yield Served(own, hold, fabric, workers)


def versions(client: Client) -> list[tuple[int, int]]:
    return sorted((model["version"], model["workers"]) for model in client.models())


def test_the_old_version_is_served_while_workers_load_the_new_one_in_turn(served: Served) -> None:
    served.publish(2)
    served.workers.wait_for("mlp version 2 is loading")
    with Client(served.fabric.frontend) as client:
        for _ in range(20):
            assert client.infer("mlp", H2).version == 1
        assert versions(client) == [(1, 2)]
        # A worker announces it when it is ready; then the other worker loads it.
        assert sum("is loading" in line for line in served.workers.seen()) == 3
        served.hold.unlink()
        eventually(lambda: versions(client) == [(1, 2), (2, 2)])
        assert client.infer("mlp", H2).version == 2
    said = [line.rpartition(" ")[2] for line in served.workers.seen() if "version 2 is" in line]
    assert sorted(said) == ["loading", "loading", "served", "served"]  # one may say so when the other loads already


def test_a_version_that_is_removed_while_it_loads_is_never_served(served: Served) -> None:
    place = served.publish(2)
    served.workers.wait_for("mlp version 2 is loading")
    # At once, as `rm -r` is not: on a busy machine files could lack for long enough to be reported.
    place.rename(served.hold.with_name("removed"))
    served.hold.unlink()
    served.publish(3)
    with Client(served.fabric.frontend) as client:
        eventually(lambda: versions(client) == [(1, 2), (3, 2)])
    assert not [line for line in served.workers.seen() if "version 2 is served" in line or "ERROR" in line]


def test_workers_that_load_stop_at_once(served: Served) -> None:
    served.publish(2)
    served.workers.wait_for("mlp version 2 is loading")
    assert served.workers.end() == 0
    assert sum("stopped" in line for line in served.workers.seen()) == 2
