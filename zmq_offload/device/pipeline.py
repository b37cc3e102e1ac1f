"""A stream of items through a model, several at a time: the device computes one item while workers compute another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from enum import Enum
from typing import Generic, Literal, TypeAlias, TypeVar

from zmq_offload.client.arguments import whole
from zmq_offload.common.crew import Crew
from zmq_offload.device.runs import OUTSTANDING, Results, Run
from zmq_offload.errors import InvalidArgument, OffloadError, Unavailable

T = TypeVar("T")

Begin = Callable[[int, T], Run]
"""Start the run of an item, given its index in the stream. An item that does not fit the model fails in its future."""

Outcome: TypeAlias = "Results | OffloadError"
"""The results of an item, or with `return_exceptions` its error."""


def check_depth(depth: int) -> int:
    """`depth`, if a pipeline can have it. Raises InvalidArgument otherwise."""
    number = whole(depth)
    if number is None or not 1 <= number <= OUTSTANDING:
        raise InvalidArgument(f"depth {depth!r} is not a whole number from 1 to {OUTSTANDING}")
    return number


def in_order(items: Iterable[T], begin: Begin[T], depth: int, return_exceptions: bool) -> Iterator[Outcome]:
    """The results of each item, in order, with at most `depth` runs in flight.

    Once `depth` runs are in flight or the first is done, one item is taken for each result that is yielded. So a slow
    source does not hold back results that are ready, and a slow consumer does not let the pipeline run dry.
    """
    running: deque[Run] = deque()
    try:
        broken: Exception | None = None
        source = enumerate(items)
        while True:
            try:
                index, item = next(source)
            except StopIteration:
                break
            except Exception as error:  # of the source: raised after the results of the items before it
                broken = error
                break
            running.append(begin(index, item))
            if len(running) == depth or running[0].done():
                yield _outcome(running.popleft(), return_exceptions)
        while running:
            yield _outcome(running.popleft(), return_exceptions)
        if broken is not None:
            raise broken
    finally:
        for run in running:
            run.cancel()
        for run in running:
            run.abandon()


async def in_order_async(
    items: Iterable[T] | AsyncIterable[T], begin: Begin[T], depth: int, return_exceptions: bool
) -> AsyncIterator[Outcome]:
    """As `in_order`. Results are yielded as soon as they are ready, even while the source is waited for."""
    running: deque[tuple[Run, asyncio.Future[Results]]] = deque()
    source = _Source(items)
    index = 0
    try:
        while True:
            if len(running) < depth:
                source.request()
            first = running[0][1] if running else None
            waiting: set[asyncio.Future[Results] | asyncio.Future[T | _End]] = set()
            if source.pending is not None:
                waiting.add(source.pending)
            if first is not None:
                waiting.add(first)
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if source.ready():
                item = source.take()
                if item is not END:
                    run = begin(index, item)
                    running.append((run, asyncio.wrap_future(run)))
                    index += 1
            elif first is not None and first.done():
                yield _outcome(running.popleft()[1], return_exceptions)
        if source.error is not None:
            raise source.error
    finally:
        await source.close()
        await _abandon(running)


class _End(Enum):
    END = "end"


END: Literal[_End.END] = _End.END
"""Follows the last item of a source."""

_crew = Crew("zmq-offload-source")


class _Source(Generic[T]):
    """The items of a stream for asyncio, taken one at a time. After an error of the stream there are no more."""

    def __init__(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        self.pending: asyncio.Future[T | _End] | None = None
        """The item that is waited for."""
        self.error: Exception | None = None
        self._next = _next_of(items)
        self._ended = False

    def request(self) -> None:
        """Begin to wait for the next item, unless one is waited for or there are no more."""
        if self.pending is None and not self._ended:
            self.pending = asyncio.ensure_future(self._next())

    def ready(self) -> bool:
        return self.pending is not None and self.pending.done()

    def take(self) -> T | _End:
        """The item that is ready, or END."""
        assert self.pending is not None
        item: T | _End = END
        try:
            item = self.pending.result()
        except Exception as error:
            self.error = error
        self.pending = None
        self._ended = item is END
        return item

    async def close(self) -> None:
        """Stop waiting for an item."""
        if self.pending is not None:
            self.pending.cancel()
            await asyncio.wait({self.pending})  # the stream cannot be closed before
            if not self.pending.cancelled():
                self.pending.exception()  # marks it as retrieved


def _next_of(items: Iterable[T] | AsyncIterable[T]) -> Callable[[], Awaitable[T | _End]]:
    """A function that waits for the next item, or END. An iterator that is not asynchronous may block, so it runs in a
    thread."""
    if isinstance(items, AsyncIterable):
        source = aiter(items)
        return lambda: anext(source, END)
    plain = iter(items)
    return lambda: _in_thread(lambda: next(plain, END))


async def _abandon(running: Iterable[tuple[Run, asyncio.Future[Results]]]) -> None:
    """Cancel runs, and wait until their threads have finished with them."""
    for run, wrapped in running:
        run.cancel()
        wrapped.cancel()
        if not wrapped.cancelled():
            wrapped.exception()  # marks it as retrieved
    for run, _ in running:
        await _in_thread(run.abandon)


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """What `work` returns or raises. Not in the event loop's executor: its few threads could all be taken by sources
    that block, and the end of the program waits for them."""
    done: Future[T] = Future()

    def job() -> None:
        try:
            result = work()
        except BaseException as error:
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
        else:
            if done.set_running_or_notify_cancel():
                done.set_result(result)

    try:
        _crew.run(job)
    except RuntimeError as error:  # no more threads
        done.set_exception(Unavailable(f"a source cannot start a thread: {error}"))
    return asyncio.wrap_future(done)


def _outcome(run: Run | asyncio.Future[Results], return_exceptions: bool) -> Outcome:
    try:
        return run.result()
    except OffloadError as error:
        if return_exceptions:
            return error
        raise
