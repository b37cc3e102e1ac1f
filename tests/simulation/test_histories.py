"""Ten thousand random histories of the real cores, and proof that they would find what matters.

A history that fails names its seed: `python -m tests.simulation.history SEED` tells it again, step by step.
ZMQ_OFFLOAD_HISTORIES sets how many are run.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from broker.backend import Backend
from broker.events import ToClient
from broker.ledger import Ledger
from broker.scheduler import Scheduler
from broker.state import PendingRequest, Wanted, Worker
from tests.simulation.history import History
from tests.simulation.processes import Fault
from workers import session
from zmq_offload.errors import Status
from zmq_offload.protocol import messages as wire

HISTORIES = int(os.environ.get("ZMQ_OFFLOAD_HISTORIES", "10000"))


def run(first: int, many: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + many):
        outcomes += History(seed).run()
    return outcomes


def test_nothing_is_lost_in_ten_thousand_histories() -> None:
    portions = range(0, HISTORIES, 250)
    # "spawn": a fork of a process with threads, as other tests leave them, may find a lock held for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        outcomes = sum(pool.map(run, portions, [250] * len(portions)), Counter[str]())
    print(f"{HISTORIES} histories, calls: {dict(outcomes)}")
    assert outcomes["served"] > HISTORIES
    for code in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED"):
        assert outcomes[code], f"the histories never led to {code}"


# --- faults put in by hand ----------------------------------------------------------------------------------


def forgets_what_a_lost_worker_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Majordomo's fault: only workers that wait are watched, and a busy one takes its requests along."""

    def lose(self: Ledger, worker: Worker, why: str, now: float) -> None:
        del self.workers[worker.peer]
        self.timers.cancel(worker.peer)
        self.scheduler.remove(worker)
        self.pools_changed(now)

    monkeypatch.setattr(Ledger, "lose", lose)


def keeps_the_slot_of_an_answer_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot leaks with each request that was cancelled or expired while it ran."""

    def answered(self: Backend, worker: Worker, message: Any) -> PendingRequest | None:
        held = worker.held.get((wire.Key(message.session, message.id), message.attempt))
        if held is not None and self._ledger.awaits(worker, held, message.attempt):
            del worker.held[held.key, message.attempt]
            return held
        return None

    monkeypatch.setattr(Backend, "_answered", answered)


def gives_one_more_than_there_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "free", property(lambda self: self.slots + 1 - len(self.held)))


def a_worker_does_not_introduce_itself_to_a_restarted_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session._ON, wire.Identify, lambda self, broker, message: [])


def a_cancelled_request_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that took it back does not care; but what is promised is counted."""
    fail = Ledger.fail

    def silent(self: Ledger, request: PendingRequest, event: str, now: float, status: Status, text: str) -> None:
        fail(self, request, event, now, status, text)
        if status is Status.CANCELLED:
            self.actions = [a for a in self.actions if not isinstance(a, ToClient)]
            self.counts["failed.CANCELLED"] -= 1

    monkeypatch.setattr(Ledger, "fail", silent)


def an_idle_version_is_not_fed_when_the_latest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one was in the core until `validate` looked for it."""
    monkeypatch.setattr(Ledger, "pools_changed", lambda self, now: None)


def ties_go_to_whoever_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least outstanding, but the comparison is the wrong way round and forgets who is free."""

    def choose(self: Scheduler, wanted: Wanted, longest: int = 0) -> Worker | None:
        pool = self.pools.get(wanted)
        return max(pool.first if pool else (), key=lambda worker: worker.chosen, default=None)

    monkeypatch.setattr(Scheduler, "choose", choose)


@pytest.mark.parametrize(
    "put_in",
    [
        forgets_what_a_lost_worker_held,
        keeps_the_slot_of_an_answer_that_is_not_wanted,
        gives_one_more_than_there_are_slots,
        a_worker_does_not_introduce_itself_to_a_restarted_broker,
        a_cancelled_request_is_not_answered,
        an_idle_version_is_not_fed_when_the_latest_goes,
        ties_go_to_whoever_is_full,
    ],
)
def test_a_fault_that_is_put_in_is_found(
    put_in: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(monkeypatch)
    with pytest.raises(Fault) as found:
        run(0, 1000)
    says = str(found.value).splitlines()[0]
    print(f"{put_in.__name__}: {says}")
    assert says.startswith("seed ")


def test_a_history_is_told_again_by_its_seed() -> None:
    first, again = History(7), History(7)
    assert first.run() == again.run()
    assert first.story(10_000) == again.story(10_000)
