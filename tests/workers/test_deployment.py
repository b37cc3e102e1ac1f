"""What a worker serves follows the repository, and a fault in one version does not affect the others."""

from __future__ import annotations

import logging
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from workers.deployment import Deployment
from zmq_offload.artifacts.repository import ModelVersion, Repository
from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol.tensors import TensorSpec

SPEC = (TensorSpec("x", "FP32", (3,)),)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def add(repository: Repository, name: str, version: int, *, force: bool = False) -> None:
    def build(folder: Path) -> ModelVersion:
        (folder / "subgraph.so").write_bytes(b"library")
        return ModelVersion(name, version, SPEC, SPEC, "llvm", "0.27.0", "")

    repository.write(name, version, build, force=force)


class Loaded:
    """The executor of a version."""


class Loader:
    """Loads every version that has no error in `faults`."""

    def __init__(self) -> None:
        self.faults: dict[tuple[str, int], Exception] = {}
        self.loaded: list[tuple[str, int]] = []

    def __call__(self, repository: Repository, name: str, version: int) -> Any:
        self.loaded.append((name, version))
        if (name, version) in self.faults:
            raise self.faults[name, version]
        return Loaded()


def test_new_replaced_and_removed_versions_are_followed(repository: Repository) -> None:
    add(repository, "a", 1)
    load = Loader()
    deployment = Deployment(repository, load)
    assert deployment.refresh() and set(deployment.executors) == {("a", 1)}
    assert not deployment.refresh()
    add(repository, "a", 2)
    add(repository, "a", 1, force=True)
    assert deployment.refresh() and set(deployment.executors) == {("a", 1), ("a", 2)}
    assert load.loaded == [("a", 1), ("a", 2), ("a", 1)]  # the newest first
    shutil.rmtree(repository.path("a", 1))
    assert deployment.refresh() and set(deployment.executors) == {("a", 2)}


@pytest.mark.parametrize("fault", [FailedPrecondition("damaged"), MemoryError("std::bad_alloc"), OSError(5, "I/O")])
def test_a_version_that_does_not_load_does_not_affect_the_others(
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
    description = repository.path("bad", 1) / "model.json"
    description.write_text(description.read_text() + "\n")  # repaired in place, without the library
    assert deployment.refresh() and set(deployment.executors) == {("bad", 1), ("good", 1)}


def test_a_version_that_is_removed_file_by_file_while_it_loads_is_not_an_error(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    add(repository, "a", 1)

    class Removed(Loader):
        def __call__(self, repository: Repository, name: str, version: int) -> Any:
            (repository.path(name, version) / "model.json").unlink()
            raise FailedPrecondition("model.json: no such file")

    with caplog.at_level(logging.ERROR):
        Deployment(repository, Removed()).refresh()
    assert not [record for record in caplog.records if "model a" in record.getMessage()]


def test_a_folder_that_cannot_be_read_does_not_affect_the_others_and_is_named_once(
    repository: Repository, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(repository, "a", 1)
    add(repository, "b", 1)
    deployment = Deployment(repository, Loader())
    deployment.refresh()
    read, unreadable = Path.iterdir, {repository.root / "a"}

    def iterdir(folder: Path) -> Any:
        if folder in unreadable:
            raise PermissionError(13, "Permission denied")
        return read(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    add(repository, "b", 2)
    assert deployment.refresh() and not deployment.refresh()
    assert set(deployment.executors) == {("a", 1), ("b", 1), ("b", 2)}
    unreadable.add(repository.root)
    assert not deployment.refresh() and not deployment.refresh()
    assert set(deployment.executors) == {("a", 1), ("b", 1), ("b", 2)}
    unreadable.clear()
    assert not deployment.refresh()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        f"{repository.root / 'a'} cannot be read: Permission denied; serving its loaded versions",
        f"{repository.root} cannot be read: Permission denied; serving the loaded versions",
    ]


def test_an_empty_repository_is_logged_once(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    deployment = Deployment(repository, Loader())
    assert not deployment.refresh() and not deployment.refresh()
    (record,) = caplog.records
    assert record.getMessage() == f"nothing is served: no model in {repository.root} loads"
    add(repository, "a", 1)
    assert deployment.refresh()


def test_a_removed_version_is_dropped_by_the_next_refresh_and_its_memory_released(repository: Repository) -> None:
    events: list[str] = []
    deployment = Deployment(repository, Loader(), lambda: events.append("changed"), lambda: events.append("released"))
    add(repository, "a", 1)
    deployment.refresh()
    (executor,) = map(weakref.ref, deployment.executors.values())
    shutil.rmtree(repository.path("a", 1))
    deployment.refresh()
    assert executor() is not None and events == ["changed", "changed"]  # the serving thread may be using it
    running = executor()
    deployment.refresh()
    assert events == ["changed", "changed"]
    del running
    deployment.refresh()
    assert executor() is None and events == ["changed", "changed", "released"]


def test_a_version_that_is_removed_while_it_loads_is_not_logged_as_an_error(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    add(repository, "a", 1)
    add(repository, "b", 1)

    def load(repository: Repository, name: str, version: int) -> Any:
        if name == "b":
            shutil.rmtree(repository.path(name, version))
            raise FailedPrecondition("subgraph.so: No such file or directory")
        return Loaded()

    deployment = Deployment(repository, load)
    assert deployment.refresh() and set(deployment.executors) == {("a", 1)}
    assert not caplog.records


def test_a_file_in_the_place_of_a_repository_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    Deployment(Repository(tmp_path / "file"), Loader()).refresh()
    (record,) = caplog.records
    assert record.getMessage() == f"--repository {tmp_path}/file: not a folder; waiting for it"


@pytest.mark.parametrize("loaded", [False, True])
def test_a_missing_repository_is_named_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loaded: bool
) -> None:
    repository = Repository(tmp_path / "repository")
    deployment = Deployment(repository, Loader())
    if loaded:
        add(repository, "a", 1)
        deployment.refresh()
        repository.root.rename(tmp_path / "elsewhere")
    deployment.refresh()
    deployment.refresh()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"--repository {repository.root}: no such folder; "
        + ("serving the loaded versions" if loaded else "waiting for it")
    )
    assert set(deployment.executors) == ({("a", 1)} if loaded else set())
    add(repository, "b", 1)
    deployment.refresh()
    assert set(deployment.executors) == {("b", 1)}


def configure(repository: Repository, name: str, text: str) -> None:
    (Path(repository.root) / name / "config.toml").write_text(text)


def test_a_configuration_says_which_versions_are_served_and_is_followed(repository: Repository) -> None:
    for version in (1, 2, 3):
        add(repository, "m", version)
    load, changes = Loader(), [0]
    deployment = Deployment(repository, load, lambda: changes.__setitem__(0, changes[0] + 1))
    configure(repository, "m", "versions = { latest = 2 }")
    deployment.refresh()
    assert sorted(deployment.executors) == [("m", 2), ("m", 3)]
    configure(repository, "m", "versions = [1, 3]")
    deployment.refresh()
    assert sorted(deployment.executors) == [("m", 1), ("m", 3)]
    configure(repository, "m", "versions = []")
    assert deployment.refresh() and deployment.executors == {}
    (Path(repository.root) / "m" / "config.toml").unlink()
    deployment.refresh()
    assert sorted(deployment.executors) == [("m", 1), ("m", 2), ("m", 3)]


def test_another_configuration_of_the_same_versions_changes_the_announcement_without_a_load(
    repository: Repository,
) -> None:
    add(repository, "m", 1)
    load, events = Loader(), list[str]()
    deployment = Deployment(repository, load, lambda: events.append("changed"))
    deployment.refresh()
    loads = len(load.loaded)
    configure(repository, "m", "[labels]\nstable = 1")
    deployment.refresh()
    deployment.refresh()
    assert (events, len(load.loaded)) == (["changed", "changed"], loads)
    assert deployment.config_of("m").labels == {"stable": 1}
    assert deployment.config_of("other").labels == {}


def test_a_wrong_configuration_is_logged_once_and_the_last_good_one_counts(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        add(repository, "m", version)
    deployment = Deployment(repository, Loader())
    configure(repository, "m", "versions = [1]")
    deployment.refresh()
    configure(repository, "m", "versions = 1")
    for _ in range(2):
        deployment.refresh()
    (line,) = [record.getMessage() for record in caplog.records if "config.toml" in record.getMessage()]
    assert line.endswith("or a list of version numbers; its last good one counts")
    assert sorted(deployment.executors) == [("m", 1)]


def test_what_a_configuration_names_and_is_not_there_is_logged(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        add(repository, "m", version)
    configure(
        repository,
        "m",
        "versions = [1, 7]\nlabels = { old = 2, next = 3, now = 1 }\n[canary]\nversion = 2\nshare = 0.5",
    )
    Deployment(repository, Loader()).refresh()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "model m: label 'next' is version 3, which is not in the repository",
        "model m: label 'old' is version 2, which is not listed in versions",
        "model m: one of its versions is version 7, which is not in the repository",
        "model m: the canary is version 2, which is not listed in versions",
    ]


@pytest.mark.parametrize(("seat", "served"), [(0, ["m", "n"]), (1, ["m", "n"]), (2, ["n"])])
def test_a_model_is_served_by_so_many_processes_of_a_supervisor(
    repository: Repository, seat: int, served: list[str]
) -> None:
    for name in ("m", "n"):
        add(repository, name, 1)
    configure(repository, "m", "instances = 2")
    deployment = Deployment(repository, Loader(), seat=seat)
    deployment.refresh()
    assert sorted(name for name, _ in deployment.executors) == served


def test_a_version_that_failed_is_tried_again_when_its_configuration_changes(repository: Repository) -> None:
    for version in (1, 2):
        add(repository, "m", version)
    load = Loader()
    load.faults["m", 2] = FailedPrecondition("its warm-up failed")
    deployment = Deployment(repository, load)
    deployment.refresh()
    deployment.refresh()
    assert load.loaded == [("m", 2), ("m", 1)]
    del load.faults["m", 2]
    configure(repository, "m", "[warmup]\nruns = 1")
    deployment.refresh()
    assert load.loaded == [("m", 2), ("m", 1), ("m", 2)]
    assert sorted(deployment.executors) == [("m", 1), ("m", 2)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_inputs_of_a_warm_up_whose_file_cannot_be_looked_at_hold_up_no_other_model(
    repository: Repository, at_once: int
) -> None:
    for name in ("a", "b"):
        add(repository, name, 1)
    configure(repository, "a", f'[warmup]\ninputs = "{"x" * 300}.npz"')  # the system has no such long names
    load = Loader()
    load.faults["a", 1] = FailedPrecondition("its warm-up failed")
    deployment = Deployment(repository, load)
    deployment.refresh(at_once=at_once)
    add(repository, "c", 1)
    deployment.refresh(at_once=at_once)
    assert sorted(deployment.executors) == [("b", 1), ("c", 1)]


def test_a_worker_that_starts_with_a_wrong_configuration_serves_the_model_when_it_is_right(
    repository: Repository,
) -> None:
    add(repository, "m", 1)
    configure(repository, "m", "versions = 1")
    deployment = Deployment(repository, Loader())
    deployment.refresh()
    assert not [version for name, version in deployment.executors if name == "m"]
    configure(repository, "m", "versions = [1]")
    deployment.refresh()
    assert [version for name, version in deployment.executors if name == "m"] == [1]


class Watching(Loader):
    """Notes what is served while each version loads, and what its labels stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.deployment: Deployment | None = None
        self.seen: list[tuple[int, list[int], dict[str, int]]] = []

    def __call__(self, repository: Repository, name: str, version: int) -> Any:
        assert self.deployment is not None
        executors, configs = self.deployment.serving
        self.seen.append((version, sorted(number for _, number in executors), dict(configs[name].labels)))
        return super().__call__(repository, name, version)


@pytest.fixture
def watching() -> Watching:
    return Watching()


def start(repository: Repository, load: Watching, text: str, *versions: int) -> Deployment:
    """A deployment that serves versions of a model by a configuration."""
    for version in versions:
        add(repository, "m", version)
    configure(repository, "m", text)
    load.deployment = deployment = Deployment(repository, load)
    deployment.refresh()
    load.seen.clear()
    return deployment


def served(deployment: Deployment) -> tuple[list[int], dict[str, int]]:
    executors, configs = deployment.serving
    return sorted(version for _, version in executors), dict(configs["m"].labels)


def test_the_latest_version_is_served_until_a_newer_one_is(repository: Repository, watching: Watching) -> None:
    deployment = start(repository, watching, "versions = { latest = 1 }", 1)
    add(repository, "m", 2)
    deployment.refresh()
    assert watching.seen == [(2, [1], {})]
    assert served(deployment) == ([2], {}), "and no longer"


def test_a_version_is_served_on_if_none_of_the_wanted_ones_loads(repository: Repository, watching: Watching) -> None:
    deployment = start(repository, watching, "versions = { latest = 1 }", 1)
    watching.faults["m", 2] = FailedPrecondition("damaged")
    add(repository, "m", 2)
    for _ in range(2):
        deployment.refresh()
        assert served(deployment)[0] == [1]
    configure(repository, "m", "versions = [7]")  # it is not there yet
    deployment.refresh()
    assert served(deployment)[0] == [1]
    configure(repository, "m", "versions = []")
    deployment.refresh()
    assert served(deployment)[0] == []


def test_a_label_moves_when_its_version_is_served(repository: Repository, watching: Watching) -> None:
    deployment = start(repository, watching, "labels = { stable = 1 }", 1, 2)
    assert served(deployment) == ([1, 2], {"stable": 1})
    configure(repository, "m", "labels = { stable = 3 }")
    add(repository, "m", 3)
    deployment.refresh()
    assert watching.seen == [(3, [1, 2], {"stable": 1})]
    assert served(deployment) == ([1, 2, 3], {"stable": 3})


def test_a_version_is_served_until_its_label_has_moved(repository: Repository, watching: Watching) -> None:
    deployment = start(repository, watching, "versions = [1, 2]\nlabels = { stable = 1 }", 1, 2)
    for version in (3, 4):
        add(repository, "m", version)
    configure(repository, "m", "versions = [3, 4]\nlabels = { stable = 3 }")
    deployment.refresh()
    assert watching.seen == [(4, [1, 2], {"stable": 1}), (3, [1, 4], {"stable": 1})]
    assert served(deployment) == ([3, 4], {"stable": 3})


def test_a_version_that_is_unloaded_goes_although_a_label_stands_for_it(
    repository: Repository, watching: Watching
) -> None:
    deployment = start(repository, watching, "labels = { stable = 1, next = 2 }", 1, 2)
    configure(repository, "m", "versions = [2]\nlabels = { stable = 1, next = 2 }")
    deployment.refresh()
    assert served(deployment) == ([2], {"next": 2})


def test_several_versions_load_at_a_time_and_each_is_served_as_soon_as_it_is_loaded(repository: Repository) -> None:
    for number in range(5):
        add(repository, f"m{number}", 1)
    together = threading.Barrier(3)
    served: list[set[str]] = []
    finish = threading.Event()

    def load(_: Repository, name: str, version: int) -> Any:
        if name in ("m0", "m1", "m2"):
            together.wait(10)  # three are loading at the same time
        elif name == "m3":
            assert finish.wait(10)  # the others were served before
        return Loaded()

    def changed() -> None:
        served.append({name for name, _ in deployment.serving[0]})
        if len(served[-1]) == 4:
            finish.set()

    deployment = Deployment(repository, load, changed)
    assert deployment.refresh(at_once=3)
    assert [len(names) for names in served] == [1, 2, 3, 4, 5] and served[-2] == {"m0", "m1", "m2", "m4"}


def test_a_version_that_is_replaced_while_others_load_is_loaded_again(repository: Repository) -> None:
    for number in range(3):
        add(repository, f"m{number}", 1)
    begun, loaded = threading.Barrier(2), []

    def load(_: Repository, name: str, version: int) -> Any:
        first = name not in loaded
        loaded.append(name)
        if first and name == "m0":
            begun.wait(10)
            add(repository, "m0", 1, force=True)
        elif first and name == "m1":
            begun.wait(10)
        return Loaded()

    deployment = Deployment(repository, load)
    assert deployment.refresh(at_once=2)
    assert sorted(loaded) == ["m0", "m0", "m1", "m2"] and len(deployment.executors) == 3


def test_a_deployment_that_is_stopped_begins_no_load(repository: Repository) -> None:
    for number in range(3):
        add(repository, f"m{number}", 1)
    load = Loader()
    deployment = Deployment(repository, load)
    assert deployment.refresh(stopped=lambda: len(load.loaded) >= 2)
    assert len(load.loaded) == 2
