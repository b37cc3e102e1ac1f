"""Turns, threads and pipelines, with runs that the test decides itself."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import eventually
from zmq_offload.device.crew import Crew
from zmq_offload.device.pipeline import check_depth, in_order
from zmq_offload.device.runs import OUTSTANDING, Run, current
from zmq_offload.device.turns import Turns
from zmq_offload.errors import InvalidArgument, Unavailable


def granted(turns: Turns, number: int, log: list[int]) -> None:
    turns.when_free(number, lambda: log.append(number) is None)


def test_turns_are_given_out_by_number() -> None:
    turns, log = Turns(1), list[int]()
    with turns.turn(9):
        for number in (7, 3, 5):
            granted(turns, number, log)
        assert log == []
    assert log == [3]  # and holds it
    with turns.granted():
        pass
    assert log == [3, 5]


def test_who_waits_for_something_else_lets_others_have_the_turn_and_then_goes_on_at_once() -> None:
    turns, log = Turns(1), list[int]()
    with turns.turn(0):
        granted(turns, 1, log)
        granted(turns, 2, log)
        with turns.pause():
            assert log == [1]
        # This one computes again, and so does 1; only when both are through is there a turn for 2.
        with turns.granted():
            pass
        assert log == [1]
        turns._mine.held = True  # of 0, as before
    assert log == [1, 2]


def test_who_does_not_want_its_turn_any_more_leaves_it_to_the_next() -> None:
    turns, log = Turns(1), list[int]()
    with turns.turn(0):
        for number in range(1, 5000):  # more than could be nested calls
            turns.when_free(number, lambda: False)
        granted(turns, 5000, log)
    assert log == [5000]


def test_a_thread_that_is_interrupted_while_it_waits_does_not_take_the_turn_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, log = Turns(1), list[int]()
    with turns.turn(0):
        with monkeypatch.context() as patch:

            def interrupt(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(threading.Event, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt), turns.turn(1):
                pass
        granted(turns, 2, log)
    assert log == [2]


def test_the_thread_that_was_busy_last_is_the_next() -> None:
    crew, seen = Crew("test-crew"), list[int]()
    for _ in range(20):
        done = threading.Event()
        crew.run(lambda done=done: (seen.append(threading.get_ident()), done.set()))  # type: ignore[misc]
        done.wait(10)
        eventually(lambda: crew._idle)
    assert len(set(seen)) == 1


class Model:
    """Runs frames through `run`, and counts what is under way."""

    def __init__(self, run: Callable[[Any], Any], places: int = 100) -> None:
        self.run, self.turns = run, Turns(places)
        self.begun: list[Any] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def begin(self, index: int, frame: Any) -> Run:
        started = Run()

        def execute() -> Any:
            with self._lock:
                self.begun.append(frame)
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                return self.run(frame)
            finally:
                with self._lock:
                    self.now -= 1

        started.begin(execute, self.turns)
        return started

    def map(self, frames: Any, depth: int, return_exceptions: bool = False) -> Iterator[Any]:
        return in_order(frames, self.begin, depth, return_exceptions)


def fails_on(*bad: int) -> Callable[[int], int]:
    def run(frame: int) -> int:
        if frame in bad:
            raise Unavailable(f"no worker for {frame}")
        return frame * 10

    return run


def counted(frames: Any, taken: list[Any]) -> Iterator[Any]:
    for frame in frames:
        taken.append(frame)
        yield frame


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30), st.integers(1, 9), st.sets(st.integers(0, 29), max_size=3), st.booleans())
def test_results_and_errors_come_in_order_and_never_more_than_depth_frames_are_taken(
    frames: int, depth: int, bad: set[int], return_exceptions: bool
) -> None:
    taken: list[int] = []
    got: list[Any] = []
    results = Model(fails_on(*bad)).map(counted(range(frames), taken), depth, return_exceptions)
    error = None
    try:
        for result in results:
            got.append(result)
            assert len(taken) <= len(got) + depth - 1
    except Unavailable as raised:
        error = raised
    expected = [f"no worker for {i}" if i in bad else i * 10 for i in range(frames)]
    first = min((i for i in bad if i < frames), default=None)
    if first is not None and not return_exceptions:
        assert got == expected[:first] and str(error) == expected[first]
        assert len(taken) <= first + depth
    else:
        assert [str(g) if isinstance(g, Unavailable) else g for g in got] == expected and error is None


def test_an_error_of_the_source_comes_out_behind_the_results() -> None:
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


def test_a_slow_source_does_not_keep_back_a_result_that_is_there() -> None:
    model = Model(fails_on())
    frames: list[Run] = []

    def begin(index: int, frame: Any) -> Run:
        frames.append(model.begin(index, frame))
        return frames[-1]

    def slow() -> Iterator[int]:
        for number in range(5):
            if frames:
                frames[-1].result(10)  # each frame comes when the one before it is long done
            yield number

    taken: list[int] = []
    results = in_order(counted(slow(), taken), begin, 4, False)
    assert next(results) == 0 and len(taken) <= 2
    assert next(results) == 10 and len(taken) <= 3


class Blocked:
    """A run that waits until it is taken back, as a request does."""

    def __init__(self) -> None:
        self.waiting = 0

    def __call__(self, frame: int) -> int:
        if frame == 0:
            return 0
        scope = current()
        assert scope is not None
        from concurrent.futures import Future

        request: Future[int] = Future()
        scope.add(request)
        self.waiting += 1
        return request.result(20)


@pytest.mark.parametrize("how", ["close", "forget", "break"])
def test_a_consumer_that_leaves_takes_requests_back_and_nothing_runs_on(how: str) -> None:
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


def test_frames_that_have_not_begun_are_taken_back_without_a_thread() -> None:
    turns = Turns(1)
    with turns.turn(-1):
        ran: list[int] = []
        frames = [Run() for _ in range(3)]
        for frame in frames:
            frame.begin(lambda: ran.append(1), turns)  # type: ignore[arg-type, func-returns-value]
        frames[0].abandon()
        assert frames[1].cancel()
    frames[2].result(10)
    assert ran == [1]
    assert not wait(frames, 10).not_done  # which is told to who waits for several


def test_an_iterator_that_is_dropped_by_the_thread_of_its_own_frame_does_not_wait_for_itself() -> None:
    held: list[Any] = []
    second, go, dropped = threading.Event(), threading.Event(), threading.Event()

    def run(frame: int) -> int:
        if frame == 0:
            second.wait(10)
        elif frame == 1:
            second.set()
            go.wait(10)
            held.clear()  # as the garbage collector may, which runs in any thread
            dropped.set()
        return frame

    held.append(Model(run).map(range(9), 2))
    assert next(held[0]) == 0
    go.set()
    assert dropped.wait(10)


@pytest.mark.parametrize("depth", [0, -1, OUTSTANDING + 1, 1.5, True, None])
def test_a_depth_that_is_none_is_refused(depth: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"depth .* is not a whole number from 1 to 256"):
        check_depth(depth)
