"""Turns, threads and pipelines, with runs that the test decides itself."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import eventually
from zmq_offload.common.crew import Crew
from zmq_offload.device.pipeline import check_depth, in_order
from zmq_offload.device.runs import OUTSTANDING, Run, current
from zmq_offload.device.turns import Turns, Waiting
from zmq_offload.errors import InvalidArgument, Unavailable


@contextmanager
def turn(turns: Turns, number: int) -> Iterator[None]:
    try:
        turns.take(lambda: number)
        yield
    finally:
        turns.end()


class Line:
    """Runs that wait for turns, and the numbers of those that got one."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.log = turns, list[int]()
        self._granted: dict[int, Waiting] = {}

    def join(self, *numbers: int) -> None:
        for number in numbers:
            self.turns.when_free(number, lambda waiting, number=number: self._note(number, waiting))  # type: ignore[misc]

    def end(self, number: int) -> None:
        """The run has its turn in a thread of its own, and ends it."""

        def work() -> None:
            assert self._granted[number].take()
            assert not self._granted[number].take()  # no second thread has it
            self.turns.end()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def _note(self, number: int, waiting: Waiting) -> bool:
        if number not in self.log:
            self.log.append(number)
        self._granted[number] = waiting
        return True


def test_turns_are_granted_by_number() -> None:
    turns = Turns(1)
    line = Line(turns)
    with turn(turns, 9):
        line.join(7, 3, 5)
        assert line.log == []
    assert line.log == [3]  # and holds it
    line.end(3)
    assert line.log == [3, 5]


def test_a_run_that_waits_for_a_worker_gives_its_turn_and_then_continues_at_once() -> None:
    turns = Turns(1)
    line = Line(turns)
    with turn(turns, 0):
        line.join(1, 2)
        with turns.pause():
            assert line.log == [1]
        # This one computes again, and so does 1; only when both are through is there a turn for 2.
        line.end(1)
        assert line.log == [1]
    assert line.log == [1, 2]


def test_a_turn_that_is_not_taken_goes_to_the_next() -> None:
    turns = Turns(1)
    line = Line(turns)
    with turn(turns, 0):
        for number in range(1, 5000):  # more than could be nested calls
            turns.when_free(number, lambda _: False)
        line.join(5000)
    assert line.log == [5000]


def test_the_thread_that_was_busy_last_is_the_next() -> None:
    crew, seen = Crew("test-crew"), list[int]()
    for _ in range(20):
        done = threading.Event()
        crew.run(lambda done=done: (seen.append(threading.get_ident()), done.set()))  # type: ignore[misc]
        done.wait(10)
        eventually(lambda: crew._idle)
    assert len(set(seen)) == 1


class Model:
    """Passes items through `run`, and counts the runs in flight."""

    def __init__(self, run: Callable[[Any], Any], places: int = 100) -> None:
        self.run, self.turns = run, Turns(places)
        self.begun: list[Any] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def begin(self, index: int, item: Any) -> Run:
        started = Run()

        def execute() -> Any:
            with self._lock:
                self.begun.append(item)
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                return self.run(item)
            finally:
                with self._lock:
                    self.now -= 1

        started.begin(execute, self.turns)
        return started

    def map(self, items: Any, depth: int, return_exceptions: bool = False) -> Iterator[Any]:
        return in_order(items, self.begin, depth, return_exceptions)


def fails_on(*bad: int) -> Callable[[int], int]:
    def run(item: int) -> int:
        if item in bad:
            raise Unavailable(f"no worker for {item}")
        return item * 10

    return run


def counted(items: Any, taken: list[Any]) -> Iterator[Any]:
    for item in items:
        taken.append(item)
        yield item


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30), st.integers(1, 9), st.sets(st.integers(0, 29), max_size=3), st.booleans())
def test_results_and_errors_come_in_order_and_at_most_depth_items_are_taken(
    items: int, depth: int, bad: set[int], return_exceptions: bool
) -> None:
    taken: list[int] = []
    got: list[Any] = []
    results = Model(fails_on(*bad)).map(counted(range(items), taken), depth, return_exceptions)
    error = None
    try:
        for result in results:
            got.append(result)
            assert len(taken) <= len(got) + depth - 1
    except Unavailable as raised:
        error = raised
    expected = [f"no worker for {i}" if i in bad else i * 10 for i in range(items)]
    first = min((i for i in bad if i < items), default=None)
    if first is not None and not return_exceptions:
        assert got == expected[:first] and str(error) == expected[first]
        assert len(taken) <= first + depth
    else:
        assert [str(g) if isinstance(g, Unavailable) else g for g in got] == expected and error is None


def test_an_error_of_the_source_is_raised_after_the_results() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("the camera is gone")

    results = Model(fails_on()).map(source(), 8)
    assert [next(results) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)
    # Errors of the source are never results.
    with pytest.raises(OSError, match="the camera is gone"):
        list(Model(fails_on()).map(source(), 8, True))


def test_an_endless_source_works_and_memory_stays() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    model = Model(fails_on())
    results = model.map(endless(), 4)
    for number in range(2000):
        assert next(results) == number * 10
    results.close()  # type: ignore[attr-defined]
    assert model.most <= 4
    begun = len(model.begun)
    gc.collect()
    assert sum(isinstance(o, Run) for o in gc.get_objects()) < 20
    assert len(model.begun) == begun <= 2004


def test_a_slow_source_does_not_hold_back_a_result_that_is_ready() -> None:
    model = Model(fails_on())
    items: list[Run] = []

    def begin(index: int, item: Any) -> Run:
        items.append(model.begin(index, item))
        return items[-1]

    def slow() -> Iterator[int]:
        for number in range(5):
            if items:
                items[-1].result(10)  # each item comes when the one before it is long done
            yield number

    taken: list[int] = []
    results = in_order(counted(slow(), taken), begin, 4, False)
    assert next(results) == 0 and len(taken) <= 2
    assert next(results) == 10 and len(taken) <= 3


class Blocked:
    """A run that waits until it is canceled, as a request does."""

    def __init__(self) -> None:
        self.waiting = 0

    def __call__(self, item: int) -> int:
        if item == 0:
            eventually(lambda: self.waiting)  # a result that is there at once would be yielded before others begin
            return 0
        scope = current()
        assert scope is not None
        from concurrent.futures import Future

        request: Future[int] = Future()
        scope.add(request)
        self.waiting += 1
        return request.result(20)


@pytest.mark.parametrize("how", ["close", "forget", "break"])
def test_when_the_consumer_stops_requests_are_canceled_and_nothing_keeps_running(how: str) -> None:
    blocked = Blocked()
    model = Model(blocked)
    results = model.map(range(100), 5)
    assert next(results) == 0
    eventually(lambda: model.now == blocked.waiting >= 1)
    began = time.monotonic()
    if how == "close":
        results.close()  # type: ignore[attr-defined]
    elif how == "forget":
        del results
    else:

        def first_of(stream: Iterator[Any]) -> Any:
            for result in stream:
                return result

        del results
        first_of(model.map(range(100), 5))
    gc.collect()
    assert time.monotonic() - began < 10  # the requests would have waited for 20
    assert model.now == 0


def test_pipelines_do_not_pile_up_threads() -> None:
    model = Model(fails_on())
    list(model.map(range(20), 3))
    before = threading.active_count()
    for _ in range(50):
        list(model.map(range(5), 3))
    assert threading.active_count() <= before + 3


def test_runs_that_have_not_begun_are_canceled_without_a_thread() -> None:
    turns = Turns(1)
    with turn(turns, -1):
        ran: list[int] = []
        items = [Run() for _ in range(3)]
        for item in items:
            item.begin(lambda: ran.append(1), turns)  # type: ignore[arg-type, func-returns-value]
        items[0].abandon()
        assert items[1].cancel()
    items[2].result(10)
    assert ran == [1]
    assert not wait(items, 10).not_done  # `wait` is told, too


def test_an_iterator_that_is_dropped_by_the_thread_of_its_own_run_does_not_wait_for_itself() -> None:
    held: list[Any] = []
    second, go, dropped = threading.Event(), threading.Event(), threading.Event()

    def run(item: int) -> int:
        if item == 0:
            second.wait(10)
        elif item == 1:
            second.set()
            go.wait(10)
            held.clear()  # as the garbage collector may, which runs in any thread
            dropped.set()
        return item

    held.append(Model(run).map(range(9), 2))
    assert next(held[0]) == 0
    go.set()
    assert dropped.wait(10)


@pytest.mark.parametrize("depth", [0, -1, OUTSTANDING + 1, 1.5, True, None])
def test_an_impossible_depth_is_refused(depth: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"depth .* is not a whole number from 1 to 256"):
        check_depth(depth)
