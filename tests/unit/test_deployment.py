"""Which versions a worker serves while its repository is changed, damaged or taken away under it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from workers.deployment import Deployment
from zmq_offload.errors import FailedPrecondition
from zmq_offload.repository import DESCRIPTION, LIBRARY, ModelVersion, Repository


def write(repository: Repository, name: str, version: int, content: bytes = b"library", force: bool = False) -> None:
    def build(folder: Path) -> ModelVersion:
        (folder / LIBRARY).write_bytes(content)
        return ModelVersion(name, version, (), (), None, "0.27", "")

    repository.write(name, version, build, force=force)


def load(repository: Repository, name: str, version: int) -> Any:
    """What GraphExecutor does to files: the checksum, and nothing is loaded that does not have it."""
    return repository.read(name, version)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    write(repository, "ocr", 1)
    write(repository, "ocr", 2)
    return repository


def test_versions_come_and_go_while_others_are_served(repository: Repository) -> None:
    deployment = Deployment(repository, load)
    assert deployment.refresh()
    assert not deployment.refresh(), "nothing changed"
    write(repository, "net", 1)
    assert deployment.refresh()
    assert set(deployment.executors) == {("ocr", 1), ("ocr", 2), ("net", 1)}
    shutil.rmtree(repository.path("ocr", 2))
    assert deployment.refresh()
    assert set(deployment.executors) == {("ocr", 1), ("net", 1)}


def test_a_version_that_is_replaced_is_loaded_anew(repository: Repository) -> None:
    deployment = Deployment(repository, load)
    deployment.refresh()
    before = deployment.executors["ocr", 1]
    write(repository, "ocr", 1, b"another", force=True)
    assert deployment.refresh()
    assert deployment.executors["ocr", 1] is not before


@pytest.mark.parametrize("file", [LIBRARY, DESCRIPTION])
def test_a_damaged_version_is_said_once_and_leaves_the_others_alone(
    repository: Repository, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    (repository.path("ocr", 2) / file).write_bytes(b"not what it was")
    deployment = Deployment(repository, load)
    with caplog.at_level(logging.ERROR):
        deployment.refresh()
        deployment.refresh()
    assert set(deployment.executors) == {("ocr", 1)}
    assert len(caplog.records) == 1
    assert "version 2 is not served" in caplog.text


def test_an_unreadable_repository_leaves_what_is_loaded(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """A mount that hangs off a server that is gone, for instance; here a link to itself."""
    deployment = Deployment(repository, load)
    deployment.refresh()
    away = repository.root.rename(repository.root.with_name("away"))
    repository.root.symlink_to(repository.root)
    with caplog.at_level(logging.ERROR):
        assert not deployment.refresh()
        assert not deployment.refresh()
    assert set(deployment.executors) == {("ocr", 1), ("ocr", 2)}
    assert len(caplog.records) == 1
    repository.root.unlink()
    away.rename(repository.root)
    assert not deployment.refresh(), "it is back, and as it was"


def test_a_full_disk_leaves_no_half_of_a_version(repository: Repository) -> None:
    def build(folder: Path) -> ModelVersion:
        (folder / LIBRARY).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FailedPrecondition, match="No space left on device"):
        repository.write("ocr", 3, build)
    assert repository.versions("ocr") == [1, 2]
    assert [path.name for path in repository.path("ocr", 3).parent.iterdir() if path.name.startswith(".")] == []
