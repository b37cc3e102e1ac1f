"""What the end of the interpreter takes, so that no thread is in TVM then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from zmq_offload.runtime import ending
from zmq_offload.runtime.ending import _Ending


class Other:
    """A thread that goes on when it is told to."""

    def __init__(self, work: Callable[[Other], object]) -> None:
        self.begun, self.told, self.done = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._work, args=(work,), daemon=True).start()
        assert self.begun.wait(20)

    def wait(self) -> None:
        self.begun.set()
        self.told.wait(20)

    def leave(self) -> None:
        self.told.set()

    def _work(self, work: Callable[[Other], object]) -> None:
        work(self)
        self.done.set()


@pytest.fixture
def end() -> _Ending:
    return _Ending()


def test_the_end_takes_all_places_and_the_thread_that_ends_may_enter_still(end: _Ending) -> None:
    outer, inner = end.place(calls_back=True), end.place()
    end.begin()
    for place in (outer, inner, end.place()):
        with place:
            pass
    end.stay()
    entered = threading.Event()
    for place in (outer, inner, end.place()):
        threading.Thread(target=lambda place=place: (place.acquire(), entered.set()), daemon=True).start()
    assert not entered.wait(0.05)


def test_a_place_that_is_made_later_lets_no_other_thread_in(end: _Ending) -> None:
    end.begin()
    made: list[object] = []

    def enter(other: Other) -> None:
        place = end.place(calls_back=True)
        other.begun.set()
        with place:
            made.append(place)

    other = Other(enter)
    assert not other.done.wait(0.05)
    assert not made


def test_it_waits_for_a_thread_that_wants_an_inner_place_too(end: _Ending) -> None:
    outer, inner = end.place(calls_back=True), end.place()

    def enter(other: Other) -> None:
        with outer:
            other.wait()
            with inner:
                pass

    other = Other(enter)
    end.waiting.add(other)  # what it waits for is ended
    end.begin()
    assert other.done.wait(20)


def test_it_does_not_wait_for_ever(end: _Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "PATIENCE", 0.05)
    place = end.place()

    def enter(other: Other) -> None:
        with place:
            other.wait()

    other = Other(enter)
    end.begin()
    assert not other.done.is_set()
    other.leave()


def test_nothing_is_ended_while_no_thread_waits(end: _Ending) -> None:
    ended: list[str] = []

    class Model:
        def leave(self) -> None:
            ended.append("model")

    model = Model()
    end.waiting.add(model)
    place = end.place(calls_back=True)
    end.begin()
    assert ended == []
    with place:
        pass


def test_a_thread_that_failed_because_of_the_end_stays_where_it_is(end: _Ending) -> None:
    end.stay()
    end.begin()

    def fail(other: Other) -> None:
        other.begun.set()
        end.stay()

    assert not Other(fail).done.wait(0.05)


def test_a_forked_child_does_not_wait_for_threads_of_its_parent(end: _Ending) -> None:
    held, free = end.place(), end.place(calls_back=True)

    def enter(other: Other) -> None:
        with held:
            other.wait()

    other = Other(enter)
    end.forget()
    end.begin()  # would wait for the thread
    assert not other.done.is_set()
    other.leave()
    with free:
        pass
