"""Which version a worker loads next, and when it may: the decisions, and the lock that enforces them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.deployment import Deployment
from workers.follower import Follower, turn
from workers.loading import INCOMPLETE, Loading, Turn
from workers.serving import Executor
from zmq_offload.artifacts.repository import Repository


def test_the_newest_version_of_each_model_is_loaded_first() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 7, ("a", 2): 7, ("b", 1): 7, ("b", 10): 7, ("b", 9): 7})
    order = []
    while (chosen := loading.next()) is not None:
        order.append(chosen[0])
        assert loading.ended(*chosen)
    assert order == [("a", 2), ("b", 10), ("a", 1), ("b", 9), ("b", 1)]


def test_thousands_of_versions_are_put_in_order_without_comparing_all_pairs() -> None:
    """Looking at all newer ones of each would take minutes here."""
    loading = Loading()
    loading.scanned({("m", version): 7 for version in range(1, 8001)})
    for version in range(8000, 7980, -1):
        assert loading.next() == (("m", version), 7)
        loading.ended(("m", version), 7)


def test_a_version_that_is_being_loaded_is_not_chosen() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 7, ("a", 2): 7, ("b", 1): 7})
    running: set[tuple[str, int]] = set()
    while (chosen := loading.next(running)) is not None:
        running.add(chosen[0])
    assert running == {("a", 1), ("a", 2), ("b", 1)}


def test_only_what_changed_is_loaded_again() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 1, ("a", 2): 1})
    loading.ended(("a", 1), 1)
    loading.ended(("a", 2), 1)
    assert loading.scanned({("a", 1): 2, ("a", 2): 1}) == []
    assert loading.next() == (("a", 1), 2)


def test_a_load_does_not_count_if_the_version_was_removed_or_replaced_meanwhile() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 1})
    assert loading.next() == (("a", 1), 1)
    loading.scanned({})
    assert not loading.ended(("a", 1), 1)
    assert loading.next() is None
    loading.scanned({("a", 1): 2})
    assert not loading.ended(("a", 1), 1)
    assert loading.next() == (("a", 1), 2)


def test_a_version_that_failed_is_loaded_again_if_it_may_load_now() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 7})
    assert loading.next() == (("a", 1), 7)
    loading.ended(("a", 1), 7)
    loading.again(("a", 1))
    loading.again(("b", 1))
    assert loading.next() == (("a", 1), 7)


def test_a_version_that_loses_a_file_is_loaded_only_if_it_still_lacks_it_in_the_next_refresh() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 5, ("a", 2): INCOMPLETE})
    assert loading.next() == (("a", 2), INCOMPLETE)  # it never was complete: loading it says what is wrong
    assert loading.ended(("a", 2), INCOMPLETE)
    assert loading.next() == (("a", 1), 5)
    loading.scanned({("a", 1): INCOMPLETE}, first=False)
    assert not loading.ended(("a", 1), 5) and loading.next() is None
    loading.scanned({("a", 1): INCOMPLETE}, first=False)
    assert loading.next() is None
    loading.scanned({("a", 1): INCOMPLETE})
    assert loading.next() == (("a", 1), INCOMPLETE)


def test_removed_versions_are_reported_once() -> None:
    loading = Loading()
    loading.scanned({("a", 1): 1})
    loading.ended(("a", 1), 1)
    assert loading.scanned({}) == [("a", 1)]
    assert loading.scanned({}) == []


@pytest.mark.parametrize("seed", range(20))
def test_workers_load_in_turn_and_none_waits_forever(seed: int) -> None:
    """Simulated: workers that load for a while, some of which die or hang while they have the turn."""
    rng = random.Random(seed)
    patience, now = 60.0, 0.0
    waiting = {worker: Turn(patience) for worker in range(6)}
    holder: int | None = None
    until = 0.0
    alone = with_others = 0
    while waiting:
        now += 0.05
        if holder is not None and now >= until:
            holder = None  # it ended, or died, which frees the lock as well
        for worker in rng.sample(sorted(waiting), len(waiting)):
            free = holder is None
            if waiting[worker].granted(free, now):
                del waiting[worker]
                if free:
                    hangs = rng.random() < 0.2
                    holder, until = worker, now + (1e9 if hangs else rng.uniform(0.1, 5))
                    alone += 1
                else:
                    assert now >= patience
                    with_others += 1
        assert now < patience + 1, "a worker waits for one that hangs"
    assert alone >= 1 and alone + with_others == 6


HOLDER = """
import sys, time
from pathlib import Path
from workers.follower import turn
with turn(Path(sys.argv[1]), lambda: False):
    print("mine", flush=True)
    time.sleep(600)
"""


def stop_after(times: int) -> tuple[Callable[[], bool], list[int]]:
    asked: list[int] = []
    return lambda: len(asked) >= times or asked.append(0) is not None, asked


def test_a_process_holds_the_turn_until_it_dies_and_writes_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"mine\n"
        stopped, asked = stop_after(3)
        with turn(tmp_path, stopped):
            assert len(asked) == 3  # it was asked until it was told to stop
        holder.kill()
    with turn(tmp_path, lambda: False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_gives_the_turn_at_once(tmp_path: Path) -> None:
    with turn(tmp_path / "gone", lambda: False):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have priorities of their own on Linux only")
def test_the_thread_that_loads_gives_way_but_is_never_starved(tmp_path: Path) -> None:
    """If it starved while it holds Python's global lock, the serving thread would stop, too."""
    seen: list[tuple[int, int]] = []
    looked = threading.Event()

    class Looking(Deployment):
        def refresh(self, *_: object) -> bool:
            seen.append((os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)))
            looked.set()
            return False

    def never(*_: object) -> Executor:
        raise AssertionError

    follower = Follower(Looking(Repository(tmp_path), never), tmp_path, 0.001, never)
    follower.start()
    assert looked.wait(20)
    follower.end()
    follower.join()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert seen[0] == (os.SCHED_OTHER, min(19, own + 5))


def test_a_worker_that_starts_waits_for_what_loads_at_once_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.follower._PATIENCE", 0.01)
    begun, release = threading.Event(), threading.Event()

    class Slow(Deployment):
        def refresh(self, *_: object, **options: object) -> bool:
            assert options["at_once"] == 2
            begun.set()
            assert release.wait(10)
            return True

    def never(*_: object) -> Executor:
        raise AssertionError

    deployment = Slow(Repository(tmp_path), never)
    follower = Follower(deployment, tmp_path, 60, never, at_once=2)
    follower.start()
    assert begun.wait(10) and follower.busy
    waiting = threading.Thread(target=follower.wait)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()  # nothing is served yet
    deployment.executors = {("a", 1): None}  # type: ignore[dict-item]
    waiting.join(10)
    assert not waiting.is_alive() and follower.busy
    release.set()
    follower.wait()
    follower.end()
    follower.join(10)
