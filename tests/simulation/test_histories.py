"""Ten thousand random histories of the real cores, and faults put in on purpose, which they must find.

A history that fails names its seed: `python -m tests.simulation.history SEED` repeats it and prints each step.
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
    # "spawn": other tests leave threads, and a fork may copy a lock that one of them holds.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        outcomes = sum(pool.map(run, portions, [250] * len(portions)), Counter[str]())
    print(f"{HISTORIES} histories, calls: {dict(outcomes)}")
    assert outcomes["served"] > HISTORIES
    assert outcomes["begun ahead"] > HISTORIES / 20
    for code in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED"):
        assert outcomes[code], f"the histories never led to {code}"


# --- faults put in by hand ----------------------------------------------------------------------------------


def forgets_what_a_lost_worker_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of Majordomo: only waiting workers are monitored, and a busy one that dies takes its requests along."""

    def lose(self: Ledger, worker: Worker, why: str, now: float) -> None:
        del self.workers[worker.peer]
        self.timers.cancel(worker.peer)
        self.scheduler.remove(worker)
        self.pools_changed(now)

    monkeypatch.setattr(Ledger, "lose", lose)


def keeps_the_slot_of_an_answer_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot leaks with each request that was canceled or expired while it ran."""

    def answered(self: Backend, worker: Worker, message: Any) -> PendingRequest | None:
        held = worker.held.get(message[:3])
        if held is not None and self._ledger.awaits(worker, held, message.attempt):
            del worker.held[message[:3]]
            return held
        return None

    monkeypatch.setattr(Backend, "_answered", answered)


def gives_one_more_than_there_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "free", property(lambda self: self.slots + 1 - len(self.held)))


def a_worker_does_not_announce_itself_to_a_restarted_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session._ON, wire.Identify, lambda self, broker, message: [])


def a_canceled_request_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not wait for this reply, but every accepted request must get one."""
    fail = Ledger.fail

    def silent(self: Ledger, request: PendingRequest, event: str, now: float, status: Status, text: str) -> None:
        fail(self, request, event, now, status, text)
        if status is Status.CANCELLED:
            self.actions = [a for a in self.actions if not isinstance(a, ToClient)]
            self.counts["failed.CANCELLED"] -= 1

    monkeypatch.setattr(Ledger, "fail", silent)


def an_idle_version_is_not_fed_when_the_latest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """This fault was in the core until `validate` checked for it."""
    monkeypatch.setattr(Ledger, "pools_changed", lambda self, now: None)


def queued_requests_do_not_follow_their_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they leave a canary that is over."""
    monkeypatch.setattr(Ledger, "reroute", lambda self, now: None)


def requests_go_to_full_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of outstanding requests is reversed, and ignores free slots."""

    def choose(self: Scheduler, wanted: Wanted, longest: int, now: float) -> Worker | None:
        pool = self.pools.get(wanted)
        return max(pool.first if pool else (), key=lambda worker: worker.chosen, default=None)

    monkeypatch.setattr(Scheduler, "choose", choose)


@pytest.mark.parametrize(
    "put_in",
    [
        forgets_what_a_lost_worker_held,
        keeps_the_slot_of_an_answer_that_is_not_wanted,
        gives_one_more_than_there_are_slots,
        a_worker_does_not_announce_itself_to_a_restarted_broker,
        a_canceled_request_is_not_answered,
        an_idle_version_is_not_fed_when_the_latest_goes,
        queued_requests_do_not_follow_their_label,
        requests_go_to_full_workers,
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


def test_a_seed_repeats_its_history() -> None:
    first, again = History(7), History(7)
    assert first.run() == again.run()
    assert first.log(10_000) == again.log(10_000)
