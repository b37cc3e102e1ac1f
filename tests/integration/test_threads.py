"""Each worker process uses only its share of the cores, TVM's threads included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.processes import eventually, running_broker, running_workers, wait_for_workers

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="with one core there is nothing to share out")


def allowed(pid: int) -> list[set[int]]:
    """The cores that each thread of a process may use."""
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def alone(tmp_path: Path) -> dict[str, str]:
    """An environment in which supervisors do not share cores with those of other tests."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return {"TMPDIR": str(folder)}


def test_two_supervisors_have_distinct_cores(tmp_path: Path) -> None:
    """One process each, started together, as `honcho start -c worker=2` does."""
    environment = alone(tmp_path)
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", str(tmp_path), **environment),
        running_workers(fabric.backend, "--repository", str(tmp_path), **environment),
    ):
        first, second = (set.union(*allowed(pid)) for pid in wait_for_workers(fabric.frontend, 2))
    assert first | second == set(CORES)
    assert not first & second


def test_two_processes_have_distinct_cores(tmp_path: Path) -> None:
    options = ["--repository", str(tmp_path), "--processes", "2"]
    with running_broker() as fabric, running_workers(fabric.backend, *options, **alone(tmp_path)):
        first, second = (set.union(*allowed(pid)) for pid in wait_for_workers(fabric.frontend, 2))
    assert first | second == set(CORES)
    assert not first & second


def test_each_of_tvms_threads_has_a_core_of_its_own(tmp_path: Path) -> None:
    with running_broker() as fabric, running_workers(fabric.backend, "--repository", str(tmp_path), **alone(tmp_path)):
        (pid,) = wait_for_workers(fabric.frontend, 1)
        bound = eventually(lambda: [cores for cores in allowed(pid) if len(cores) == 1])
    assert sorted(core for cores in bound for core in cores) == CORES[1:], "the main thread works along"


@pytest.mark.parametrize(
    "options", [["--pin", "off", "--threads", "1"], ["--pin", "off", "--threads", "2"], ["--executor", "echo"]]
)
def test_not_pinned_where_told_so_or_where_nothing_is_computed(tmp_path: Path, options: list[str]) -> None:
    common = ["--repository", str(tmp_path), "--processes", "2"]
    with running_broker() as fabric, running_workers(fabric.backend, *common, *options, **alone(tmp_path)):
        for pid in wait_for_workers(fabric.frontend, 2):
            assert all(cores == set(CORES) for cores in allowed(pid))
