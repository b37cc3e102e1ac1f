"""The latest version while versions come and go, and what the log says."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import pytest

from broker.lifecycle import WorkerState
from broker.scheduler import Scheduler
from broker.state import Model, Wanted, Worker
from broker.versions import adopt
from zmq_offload.common.notes import Notes
from zmq_offload.protocol.messages import LATEST
from zmq_offload.protocol.tensors import TensorSpec, signature_of

LATEST_M = Wanted("m")
SAME = b"s" * 16


def models(*versions: int) -> dict[tuple[str, int], Model]:
    return {("m", v): Model({}, SAME, (Wanted("m", v), LATEST_M, Wanted("m", LATEST, SAME))) for v in versions}


@pytest.mark.parametrize(
    ("slots", "total", "before", "reset", "adopted"),
    [
        ({1: 8}, 8, LATEST, False, 1),
        ({1: 8, 2: 2}, 8, 1, False, 1),
        ({1: 8, 2: 4}, 8, 1, False, 1),  # half is not enough: of two workers, one would get all requests
        ({1: 8, 2: 5}, 8, 1, False, 2),
        ({1: 3, 2: 5}, 8, 1, False, 2),  # version 2 replaces version 1
        ({1: 4, 2: 4}, 8, 1, False, 1),
        ({1: 8, 2: 3}, 8, 2, False, 2),  # a worker restarts during the roll-out
        ({1: 8, 2: 3}, 8, 2, True, 1),  # a worker removes it
        ({1: 8, 2: 1}, 8, 2, False, 1),  # hardly any worker has it any longer
        ({1: 8}, 8, 2, False, 1),
        ({1: 3, 2: 3, 3: 3}, 9, 1, False, 1),
        ({2: 3, 3: 3}, 6, 1, False, 3),
        ({1: 2, 5: 6, 9: 6}, 8, 1, False, 9),
    ],
)
def test_the_rule(slots: dict[int, int], total: int, before: int, reset: bool, adopted: int) -> None:
    assert adopt(slots, total, before, reset=reset) == adopted


class Fleet:
    """Workers of one model under load: each client has one request in flight."""

    def __init__(self, workers: int, slots: int = 4) -> None:
        self.scheduler = Scheduler()
        self.workers = [Worker(b"%d" % n, f"w{n}", slots, 0.0) for n in range(workers)]
        for worker in self.workers:
            self.scheduler.update(worker, models(1))

    def restart(self, at: int, *versions: int) -> None:
        """Lose a worker; it comes back with another connection."""
        old = self.workers[at]
        self.scheduler.remove(old)
        worker = self.workers[at] = Worker(old.peer + b"'", old.name, old.slots, 0.0)
        self.scheduler.update(worker, models(*versions))

    def load(self, requests: int = 400, clients: int = 3) -> tuple[Counter[str], Counter[int]]:
        """The number of requests by worker and by version."""
        by_worker, by_version = Counter({worker.name: 0 for worker in self.workers}), Counter[int]()
        chance = random.Random(1)
        running: list[tuple[Worker, int]] = []
        for number in range(requests):
            if len(running) == clients:
                worker, key = running.pop(chance.randrange(clients))
                del worker.held[key]  # type: ignore[arg-type]
            chosen = self.scheduler.choose(LATEST_M, 0, 0.0)
            assert chosen is not None and chosen.state is WorkerState.READY
            version = self.scheduler.given(LATEST_M, chosen)
            chosen.held[number] = None  # type: ignore[index, assignment]
            running.append((chosen, number))
            by_worker[chosen.name] += 1
            by_version[version] += 1
        for worker, key in running:
            del worker.held[key]  # type: ignore[arg-type]
        return by_worker, by_version


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("held", [(1, 2), (2,)], ids=["added", "replaced"])
def test_a_roll_out_worker_after_worker_keeps_the_load_spread(workers: int, held: tuple[int, ...]) -> None:
    fleet = Fleet(workers)
    adopted = False
    for upgraded in range(1, workers + 1):
        fleet.scheduler.update(fleet.workers[upgraded - 1], models(*held))
        by_worker, by_version = fleet.load()
        taking = upgraded if 2 * upgraded > workers else workers
        assert max(by_worker.values()) < 2 * 400 / taking, f"{upgraded} of {workers}: {by_worker}"
        if 2 * upgraded > workers:
            adopted = True
            assert by_version == {2: 400}, "the workers that have it are not full"
        elif held == (1, 2):
            assert by_version == {1: 400}, "the answers do not alternate between versions"
        else:
            assert min(by_version.values()) >= 400 * upgraded / workers / 2, "both get load in proportion"
    assert adopted
    assert fleet.load()[1] == {2: 400}, "at the end all requests run on the new version"


def test_a_version_that_runs_in_batches_does_not_take_all_load_by_its_many_slots() -> None:
    """Its worker announces slots for two batches: 64 instead of 2."""
    fleet = Fleet(3, slots=2)
    for upgraded, adopted in ((0, 1), (1, 2)):
        fleet.workers[upgraded].slots = 64
        fleet.scheduler.update(fleet.workers[upgraded], models(1, 2))
        assert fleet.scheduler.pools[LATEST_M].version == adopted
        assert len(fleet.scheduler.pools[LATEST_M].first) == (3 if adopted == 1 else 2)
    fleet.scheduler.update(fleet.workers[1], models(1))
    assert fleet.scheduler.pools[LATEST_M].version == 1, "and after the roll-back"


def test_a_worker_that_restarts_during_a_roll_out_takes_no_other_back() -> None:
    fleet = Fleet(5)
    for at in range(3):
        fleet.scheduler.update(fleet.workers[at], models(1, 2))
    assert fleet.scheduler.pools[LATEST_M].version == 2
    for at in range(3):
        old = fleet.workers[at]
        fleet.scheduler.remove(old)
        assert fleet.scheduler.pools[LATEST_M].version == 2
        fleet.scheduler.update(old, models(1, 2))
        assert fleet.scheduler.pools[LATEST_M].version == 2


def test_a_roll_back_worker_after_worker_keeps_the_load_spread() -> None:
    fleet = Fleet(4)
    for worker in fleet.workers:
        fleet.scheduler.update(worker, models(1, 2))
    for left in (3, 2, 1, 0):
        fleet.scheduler.update(fleet.workers[left], models(1))
        by_worker, by_version = fleet.load()
        assert max(by_worker.values()) < 2 * 400 / (left if left > 2 else 4), f"{left} left: {by_worker}"
    assert by_version == {1: 400}


def test_a_broker_that_comes_up_during_a_roll_out_believes_the_whole_fleet() -> None:
    scheduler = Scheduler()
    workers = [Worker(b"%d" % n, f"w{n}", 2, 0.0) for n in range(4)]
    changes = [
        scheduler.update(worker, models(*held), reset=True)
        for worker, held in zip(workers, [(2,), (1,), (1,), (1,)], strict=True)
    ]
    assert changes == [[("m", 2)], [], [("m", 1)], []]
    assert {worker.name for worker in scheduler.pools[LATEST_M].first} == {"w0", "w1", "w2", "w3"}


def test_versions_of_another_signature_are_not_mixed_with_the_adopted_one() -> None:
    other = Model({}, b"o" * 16, (Wanted("m", 2), LATEST_M, Wanted("m", LATEST, b"o" * 16)))
    fleet = Fleet(3)
    fleet.scheduler.update(fleet.workers[0], {("m", 2): other})
    pool = fleet.scheduler.pools[LATEST_M]
    assert (pool.version, [worker.name for worker in pool.first]) == (1, ["w1", "w2"])
    assert fleet.scheduler.pools[Wanted("m", LATEST, b"o" * 16)].version == 2
    fleet.scheduler.update(fleet.workers[1], {("m", 2): other})
    assert fleet.scheduler.pools[LATEST_M].version == 2
    assert fleet.scheduler.pools[Wanted("m", LATEST, SAME)].version == 1


def test_a_signature_is_of_names_datatypes_and_shapes_in_any_order() -> None:
    x, y = TensorSpec("x", "FP32", (1, -1)), TensorSpec("y", "INT8", ())
    assert signature_of([x, y], [y]) == signature_of([y, x], [y])
    others = [
        signature_of([x], [y]),
        signature_of([x, y], [x]),
        signature_of([TensorSpec("x", "FP32", (1, 2)), y], [y]),
        signature_of([TensorSpec("x", "FP16", (1, -1)), y], [y]),
        signature_of([TensorSpec("z", "FP32", (1, -1)), y], [y]),
    ]
    assert len({signature_of([x, y], [y]), *others}) == 6


# --- the log ------------------------------------------------------------------------------------------------


def test_a_flood_does_not_flood_the_log() -> None:
    notes = Notes()
    for number in range(10_000):
        notes.add(100.0 + number / 1000, "malformed", f"bytes {number}")
    lines = notes.take()
    assert 20 <= len(lines) <= 31
    assert "lines like this were left out before" in lines[-1][1]
    notes.add(110.0, "aborted", "another kind\nhas its own budget")
    assert [text for _, text in notes.take()] == ["another kind\\nhas its own budget"]
    assert not notes
    notes.add(1000.0, "malformed", "x" * 9999)
    ((_, text),) = notes.take()
    assert text.startswith("x" * 500 + " (") and len(text) < 600


def test_a_worker_of_thousands_of_models_is_announced_in_linear_time() -> None:
    """Eight times as many models take eight times as many steps, not sixty-four times."""
    steps = []
    for many in (100, 800):
        named = {
            (f"m{n}", 1): Model({}, SAME, (Wanted(f"m{n}", 1), Wanted(f"m{n}"), Wanted(f"m{n}", LATEST, SAME)))
            for n in range(many)
        }
        worker, scheduler, count = Worker(b"W", "w", 1, 0.0), Scheduler(), [0]

        def trace(_frame: object, event: str, _argument: object, count: list[int] = count) -> Any:
            count[0] += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            scheduler.update(worker, named)
        finally:
            sys.settrace(before)
        steps.append(count[0])
    assert steps[1] < 12 * steps[0]
