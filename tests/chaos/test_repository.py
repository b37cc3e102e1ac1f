"""Faults of the repository under load: a full disk, an incomplete version, an unreadable folder, a removed version. Run
`pytest -m chaos -s tests/chaos/test_repository.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.processes import Process, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.errors import OffloadError

pytestmark = pytest.mark.chaos

CALLERS = 4


class Callers:
    """Threads that call the latest version of `m`, which adds one, and check each result."""

    def __init__(self, frontend: str) -> None:
        self.served = self.wrong = 0
        self.errors: Counter[str] = Counter()
        self._frontend = frontend
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.threads = [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs"

    def go_on(self, calls: int = 200) -> None:
        """Wait until a number of further requests were served."""
        aim = self.served + calls
        eventually(lambda: self.served >= aim, timeout=30)

    def _call(self, which: int) -> None:
        x = np.full((1, 16), which, np.float32)
        with Client(self._frontend, timeout=10) as client:
            while not self._stop.is_set():
                try:
                    (result,) = client.infer("m", {"h": x}).values()
                except OffloadError as error:
                    with self._lock:
                        self.errors[error.code.value] += 1
                    time.sleep(0.01)
                    continue
                with self._lock:
                    self.served += 1
                    self.wrong += not np.array_equal(result, x + 1)


def model(folder: Path) -> Path:
    nodes = [onnx_models.helper.make_node("Relu", ["x"], ["h"]), onnx_models.helper.make_node("Add", ["h", "w"], ["y"])]
    weights = {"w": np.ones((1, 16), np.float32)}
    return onnx_models.write(folder / "m.onnx", nodes, {"x": [1, 16]}, {"y": [1, 16]}, weights)


def build(path: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run `zmq-offload compile`."""
    command = [
        sys.executable,
        "-m",
        "zmq_offload",
        "compile",
        str(path),
        "--cut",
        "h",
        "--name",
        "m",
        "--quiet",
    ]
    return subprocess.run([*command, "-o", str(output), *more], capture_output=True, text=True, check=False)


@contextmanager
def disk(place: Path, nbytes: int) -> Iterator[None]:
    """A disk of a given size; needs root."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "none", str(place)], check=False).returncode:
        pytest.skip("only root may mount a disk that can be filled")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def point(link: Path, target: Path) -> None:
    """Change the target of a symbolic link atomically."""
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    os.rename(fresh, link)


@contextmanager
def under_load(repository: Path) -> Iterator[tuple[Callers, Process, str]]:
    options = ["--repository", str(repository), "--processes", "2", "--threads", "1", "--refresh", "0.2"]
    with running_broker() as broker, running_workers(broker.backend, *options) as workers:
        with Client(broker.frontend) as client:
            eventually(lambda: [m["workers"] for m in client.models()] == [2], timeout=60)
        callers = Callers(broker.frontend)
        try:
            yield callers, workers, broker.frontend
        finally:
            callers.stop()


def versions(frontend: str) -> dict[int, int]:
    """Version -> the number of workers that have it."""
    with Client(frontend) as client:
        return {m["version"]: m["workers"] for m in client.models()}


def test_faults_of_the_repository_cost_no_request(tmp_path: Path) -> None:
    path, dist = model(tmp_path), tmp_path / "dist"
    assert build(path, dist).returncode == 0
    link = tmp_path / "repository"
    link.symlink_to(dist / "repository")
    with under_load(link) as (callers, workers, frontend):
        callers.go_on()

        half = dist / "repository" / "m" / "2"
        shutil.copytree(dist / "repository" / "m" / "1", half)
        text = (half / "model.json").read_text()
        (half / "model.json").write_text(text.replace('"version": 1', '"version": 2'))
        whole = (half / "subgraph.so").read_bytes()
        (half / "subgraph.so").write_bytes(whole[: len(whole) // 2])
        workers.wait_for(r"model m version 2 is not served: \S+ is damaged")
        callers.go_on()
        assert versions(frontend) == {1: 2}
        (half / "subgraph.so").write_bytes(whole)
        eventually(lambda: versions(frontend) == {1: 2, 2: 2})
        callers.go_on()

        point(link, link)  # to itself: reading it fails, even for root
        workers.wait_for("serving the loaded versions")
        callers.go_on()
        assert versions(frontend) == {1: 2, 2: 2}
        point(link, dist / "repository")
        callers.go_on()

        shutil.rmtree(half)
        eventually(lambda: versions(frontend) == {1: 2})
        callers.go_on()
    report(callers)


def test_a_full_disk_costs_the_new_version_only(tmp_path: Path) -> None:
    path, dist, repository = model(tmp_path), tmp_path / "dist", tmp_path / "repository"
    assert build(path, dist).returncode == 0
    first = dist / "repository" / "m" / "1"
    room = sum(file.stat().st_size for file in first.iterdir())
    with disk(repository, room * 3 // 2 // 4096 * 4096):
        shutil.copytree(first, repository / "m" / "1")
        with under_load(repository) as (callers, _, frontend):
            callers.go_on()
            full = build(path, dist, "--only-subgraph", "--repository", str(repository))
            assert full.returncode == 1
            assert full.stderr.count("\n") == 1
            assert "No space left on device" in full.stderr
            assert [p.name for p in (repository / "m").iterdir()] == ["1"]
            callers.go_on()
            assert versions(frontend) == {1: 2}
    report(callers)


def report(callers: Callers) -> None:
    print(f"\nrepository: {callers.served} served, {callers.wrong} wrong, errors {dict(callers.errors)}")
    assert callers.wrong == 0
    assert callers.errors == {}
