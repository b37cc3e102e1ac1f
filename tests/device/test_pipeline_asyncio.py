"""Pipelines for asyncio, with runs that the test decides itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.device.test_pipeline import Blocked, Model, fails_on
from zmq_offload.common.crew import Crew
from zmq_offload.device.pipeline import in_order_async
from zmq_offload.errors import Unavailable


async def collect(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_asyncio_gives_the_same_results_and_errors_in_order(asynchronous: bool) -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(12):
            await asyncio.sleep(0)
            yield number

    async def main() -> None:
        source: Any = items() if asynchronous else range(12)
        model = Model(fails_on())
        assert await collect(in_order_async(source, model.begin, 3, False)) == [n * 10 for n in range(12)]
        assert model.most <= 3
        source = items() if asynchronous else range(12)
        results = in_order_async(source, Model(fails_on(5)).begin, 3, False)
        assert [await anext(results) for _ in range(5)] == [0, 10, 20, 30, 40]
        with pytest.raises(Unavailable, match="no worker for 5"):
            await anext(results)
        source = items() if asynchronous else range(12)
        got = await collect(in_order_async(source, Model(fails_on(5)).begin, 3, True))
        assert isinstance(got[5], Unavailable) and got[6:] == [n * 10 for n in range(6, 12)]

    asyncio.run(main())


def test_asyncio_yields_a_result_while_the_source_is_waited_for() -> None:
    async def main() -> None:
        more = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            yield 1
            await more.wait()
            yield 2

        results = in_order_async(items(), Model(fails_on()).begin, 4, False)
        assert await asyncio.wait_for(anext(results), 10) == 10
        more.set()
        assert await asyncio.wait_for(anext(results), 10) == 20

    asyncio.run(main())


def test_asyncio_continues_while_items_are_computed_and_the_source_waits() -> None:
    async def main() -> None:
        ticks = 0
        go = threading.Event()

        async def tick() -> None:
            nonlocal ticks
            while ticks < 20:
                ticks += 1
                await asyncio.sleep(0)
            go.set()

        def slow_source() -> Iterator[int]:
            assert go.wait(10), "the event loop stood still"
            yield 1

        def slow_run(item: int) -> int:
            assert go.wait(10), "the event loop stood still"
            return item

        ticking = asyncio.create_task(tick())
        assert await collect(in_order_async(slow_source(), Model(slow_run).begin, 2, False)) == [1]
        await ticking

    asyncio.run(main())


def test_asyncio_cancels_requests_when_its_consumer_stops() -> None:
    async def main() -> None:
        blocked = Blocked()
        model = Model(blocked)
        results = in_order_async(range(100), model.begin, 5, False)
        assert await anext(results) == 0
        began = time.monotonic()
        await results.aclose()  # type: ignore[attr-defined]
        assert model.now == 0 and time.monotonic() - began < 10

    asyncio.run(main())


def test_asyncio_does_not_wait_for_a_source_that_waits_when_its_consumer_leaves() -> None:
    more = threading.Event()

    def camera() -> Iterator[int]:
        yield 1
        more.wait(30)

    async def main() -> None:
        results = in_order_async(camera(), Model(fails_on()).begin, 2, False)
        assert await anext(results) == 10
        await results.aclose()  # type: ignore[attr-defined]

    began = time.monotonic()
    asyncio.run(main())
    more.set()
    assert time.monotonic() - began < 15


def test_asyncio_sources_that_wait_do_not_take_threads_from_each_other() -> None:
    async def main() -> None:
        more = [threading.Event() for _ in range(40)]  # above what the event loop's executor has

        def camera(event: threading.Event) -> Iterator[int]:
            yield 1
            event.wait(30)
            yield 2

        model = Model(fails_on())
        streams = [in_order_async(camera(event), model.begin, 1, False) for event in more]
        assert await asyncio.gather(*map(anext, streams)) == [10] * 40
        last = [asyncio.ensure_future(anext(stream)) for stream in streams]  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        more[-1].set()
        assert await asyncio.wait_for(last[-1], 10) == 20
        for event in more:
            event.set()
        assert await asyncio.gather(*last) == [20] * 40

    asyncio.run(main())


def test_an_asynchronous_source_can_be_closed_when_the_consumer_has_left() -> None:
    closed: list[int] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(30)
        finally:
            closed.append(1)

    async def main() -> None:
        source = items()
        results = in_order_async(source, Model(fails_on()).begin, 4, False)
        assert await anext(results) == 10
        await results.aclose()  # type: ignore[attr-defined]
        await source.aclose()  # type: ignore[attr-defined]
        assert closed == [1]

    asyncio.run(main())


def test_a_source_without_a_thread_to_run_in_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("zmq_offload.device.pipeline._crew", Crew("new"))
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(Unavailable, match="a source cannot start a thread: can't start new thread"):
        asyncio.run(collect(in_order_async(range(3), Model(fails_on()).begin, 3, False)))
