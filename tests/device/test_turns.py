"""Ctrl-C anywhere in the turns of runs loses none of them."""

from __future__ import annotations

import threading

from tests.support.interrupts import interrupted_everywhere
from zmq_offload.device import runs as runs_module
from zmq_offload.device import turns as turns_module
from zmq_offload.device.runs import Results, Run
from zmq_offload.device.turns import Turns, Waiting

PLACES = 2


def run_model(turns: Turns, number: int = 1) -> None:
    """As `OffloadedModel.__call__`, with a region on a worker."""
    try:
        try:
            turns.take(lambda: number)
            with turns.pause():
                pass
        finally:
            turns.end()
    except BaseException:
        turns.end()
        raise


def all_are_free(turns: Turns) -> bool:
    """Whether as many threads as there are places get a turn at the same time."""
    together = threading.Barrier(PLACES)

    def hold() -> None:
        turns.take(lambda: 99)
        together.wait(20)
        turns.end()

    threads = [threading.Thread(target=hold) for _ in range(PLACES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return not turns._holders and not together.broken


def test_of_a_call_that_need_not_wait() -> None:
    for run in interrupted_everywhere(turns_module):
        turns = Turns(PLACES)
        run(lambda turns=turns: run_model(turns))  # type: ignore[misc]
        assert all_are_free(turns)


class Waits:
    """A call that waits for its turn, and a run that waits behind it."""

    def __init__(self) -> None:
        self.turns = Turns(PLACES)
        self.begun = threading.Event()
        self._lined_up, self._held = threading.Event(), threading.Semaphore(0)
        self._holders = [threading.Thread(target=self._hold) for _ in range(PLACES)]
        for holder in self._holders:
            holder.start()
            self._held.acquire()
        self.turns.when_free(5, self._begin)

    def call(self) -> None:
        try:
            try:
                self.turns.take(self._number)
            finally:
                self.turns.end()
        except BaseException:
            self.turns.end()
            raise

    def over(self) -> None:
        self._lined_up.set()
        for holder in self._holders:
            holder.join(20)

    def _number(self) -> int:
        self._lined_up.set()
        return 1

    def _hold(self) -> None:
        self.turns.take(lambda: 0)
        self._held.release()
        self._lined_up.wait(20)
        self.turns.end()

    def _begin(self, waiting: Waiting) -> bool:
        threading.Thread(target=self._work, args=(waiting,)).start()
        return True

    def _work(self, waiting: Waiting) -> None:
        if waiting.take():
            self.turns.end()
            self.begun.set()


def test_of_a_call_that_waits_while_others_end_and_wait() -> None:
    for run in interrupted_everywhere(turns_module):
        waits = Waits()
        run(waits.call)
        waits.over()
        assert waits.begun.wait(20), "the run that waits never begins"
        assert all_are_free(waits.turns)


def test_of_a_run_that_is_submitted() -> None:
    """Others begin all the same, and it runs once or not at all."""
    for module in (turns_module, runs_module):
        for run in interrupted_everywhere(module):
            turns, ran = Turns(PLACES), list[str]()

            def execute(name: str, ran: list[str] = ran) -> Results:
                ran.append(name)
                return ()

            first, second = Run(), Run()
            turns._holders |= {"a", "b"}  # two others
            first.begin(lambda execute=execute: execute("first"), turns)  # type: ignore[misc]
            turns._holders -= {"a", "b"}
            run(lambda second=second, turns=turns, execute=execute: second.begin(lambda: execute("second"), turns))  # type: ignore[misc]
            second.abandon()  # nobody may know it
            assert all_are_free(turns)
            assert first.result(20) == ()
            assert ran.count("first") == 1
            assert ran.count("second") <= 1
