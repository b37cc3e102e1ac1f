"""What a worker serves follows the repository, and a fault in one version leaves the others alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from workers.deployment import Deployment
from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.repository import ModelVersion, Repository

SPEC = (TensorSpec("x", "FP32", (3,)),)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def add(repository: Repository, name: str, version: int, *, force: bool = False) -> None:
    def build(folder: Path) -> ModelVersion:
        (folder / "subgraph.so").write_bytes(b"library")
        return ModelVersion(name, version, SPEC, SPEC, "llvm", "0.27.0", "")

    repository.write(name, version, build, force=force)


class Loader:
    """Loads anything but what `faults` has an error for."""

    def __init__(self) -> None:
        self.faults: dict[tuple[str, int], Exception] = {}
        self.loaded: list[tuple[str, int]] = []

    def __call__(self, repository: Repository, name: str, version: int) -> Any:
        self.loaded.append((name, version))
        if (name, version) in self.faults:
            raise self.faults[name, version]
        return object()


def test_new_replaced_and_removed_versions_are_followed(repository: Repository) -> None:
    add(repository, "a", 1)
    load = Loader()
    deployment = Deployment(repository, load)
    assert deployment.refresh() and set(deployment.executors) == {("a", 1)}
    assert not deployment.refresh()
    add(repository, "a", 2)
    add(repository, "a", 1, force=True)
    assert deployment.refresh() and set(deployment.executors) == {("a", 1), ("a", 2)}
    assert load.loaded == [("a", 1), ("a", 1), ("a", 2)]
    shutil.rmtree(repository.path("a", 1))
    assert deployment.refresh() and set(deployment.executors) == {("a", 2)}


@pytest.mark.parametrize("fault", [FailedPrecondition("damaged"), MemoryError("std::bad_alloc"), OSError(5, "I/O")])
def test_a_version_that_does_not_load_leaves_the_others_alone(
    repository: Repository, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    add(repository, "bad", 1)
    add(repository, "good", 1)
    load = Loader()
    load.faults["bad", 1] = fault
    deployment = Deployment(repository, load)
    with caplog.at_level(logging.ERROR):
        assert deployment.refresh() and set(deployment.executors) == {("good", 1)}
        assert not deployment.refresh()
    (record,) = caplog.records
    assert "model bad version 1 is not served" in record.getMessage() and str(fault) in record.getMessage()
    load.faults.clear()
    add(repository, "bad", 1, force=True)
    assert deployment.refresh() and set(deployment.executors) == {("bad", 1), ("good", 1)}
