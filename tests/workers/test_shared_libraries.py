"""Models whose libraries have the same content: one is loaded, and each model runs its own function of it."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.compiled import copies
from tests.support.memory import MB, resident_bytes
from tests.support.processes import eventually, running_broker, running_workers, worker_pids
from tests.support.split_bundles import CUTS, SplitNet, write_models
from workers.executor import GraphExecutor
from zmq_offload import Client
from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY, Repository
from zmq_offload.errors import FailedPrecondition
from zmq_offload.runtime import shared
from zmq_offload.runtime.machine import load_library
from zmq_offload.runtime.tvm_library import tvm_ffi

NET = SplitNet(seed=8)  # no other test loads this library


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A model for each cut, not to be changed."""
    repository = Repository(tmp_path_factory.mktemp("family"))
    write_models(repository, NET)
    return repository


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are loaded from now on."""
    found: list[Path] = []

    def counted(path: Path) -> tvm_ffi.Module:
        found.append(path)
        return load_library(path)

    monkeypatch.setattr(shared, "load_library", counted)
    return found


def value(cut: str) -> np.ndarray:
    """The tensor of a cut, for x of ones."""
    tensor = np.ones((1, NET.widths[0]), np.float32)
    for weights in NET.weights[: CUTS.index(cut)]:
        tensor = tensor @ weights
    return tensor


def check(executor: GraphExecutor, cut: str) -> None:
    ((found,),) = executor.run([[value(cut)]])
    np.testing.assert_allclose(found, NET.expected(value("x")), atol=1e-5)


def test_each_model_runs_its_function_of_one_library(family: Repository, loads: list[Path]) -> None:
    executors = {cut: GraphExecutor(family, NET.model(cut), 1) for cut in CUTS}
    assert len(loads) == 1
    for cut, executor in [*executors.items(), *executors.items()]:
        check(executor, cut)


def test_the_library_goes_with_the_last_of_its_models(family: Repository, loads: list[Path]) -> None:
    held = [GraphExecutor(family, NET.model(cut), 1) for cut in CUTS]
    del held[0]
    check(held[-1], CUTS[-1])
    held.append(GraphExecutor(family, NET.model("x"), 1))
    assert len(loads) == 1
    held.clear()
    gc.collect()
    assert family.read(NET.model("x"), 1).checksum not in shared._in_use
    check(GraphExecutor(family, NET.model("x"), 1), "x")
    assert len(loads) == 2


def test_copies_are_shared_and_other_content_is_not(family: Repository, tmp_path: Path, loads: list[Path]) -> None:
    copied = Repository(Path(shutil.copytree(family.root, tmp_path / "copied")))
    other = Repository(tmp_path / "other")
    write_models(other, SplitNet(seed=6), cuts=["x"])
    held = [GraphExecutor(r, NET.model("x"), 1) for r in (family, copied, other)]
    assert [path.is_relative_to(other.root) for path in loads] == [False, True]
    check(held[1], "x")


def test_threads_that_load_at_once_load_once(family: Repository, loads: list[Path]) -> None:
    held: list[GraphExecutor] = []
    threads = [
        threading.Thread(target=lambda cut=cut: held.append(GraphExecutor(family, NET.model(cut), 1))) for cut in CUTS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 3 and len(loads) == 1


def test_an_entry_that_the_library_lacks_is_refused(family: Repository, tmp_path: Path) -> None:
    repository = Repository(Path(shutil.copytree(family.root, tmp_path / "copied")))
    folder = repository.path(NET.model("x"), 1)
    described = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(described | {"entry": "nowhere"}))
    with pytest.raises(FailedPrecondition, match=f"{LIBRARY} cannot be loaded: .*nowhere"):
        GraphExecutor(repository, NET.model("x"), 1)
    (folder / DESCRIPTION).write_text(json.dumps(described | {"entry": ""}))
    with pytest.raises(FailedPrecondition, match="entry"):
        GraphExecutor(repository, NET.model("x"), 1)


@pytest.mark.load
def test_six_models_of_one_library_take_the_memory_of_one(tmp_path: Path) -> None:
    net = SplitNet(widths=(3600, 5000, 1600, 8))  # 100 MB of weights
    write_models(Repository(tmp_path / "built"), net, cuts=["x"])
    resident: dict[int, int] = {}
    for count in (1, 6):
        root = copies(tmp_path / "built" / net.model("x") / "1", tmp_path / str(count), count)
        options = ["--repository", str(root), "--processes", "1", "--threads", "1"]
        with running_broker() as broker, running_workers(broker.backend, *options), Client(broker.frontend) as client:
            eventually(lambda count=count, client=client: len(client.models()) == count, timeout=60)
            for number in range(count):
                client.infer(f"m{number}", {"x": np.ones((1, 3600), np.float32)})
            (pid,) = worker_pids(broker.frontend)
            resident[count] = resident_bytes(pid)
            print(f"\n{count} models: {resident[count] / MB:.1f} MB resident")
    assert resident[6] < resident[1] + 8 * MB
