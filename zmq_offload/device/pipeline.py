"""Frame after frame through a model, several at a time: the device computes one while workers compute another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from zmq_offload.client.arguments import whole
from zmq_offload.device.crew import Crew
from zmq_offload.device.runs import OUTSTANDING, Results, Run
from zmq_offload.errors import InvalidArgument, OffloadError, Unavailable

Begin = Callable[[int, Any], Run]
"""Start frame number so-and-so of a stream; a frame that is wrong fails in its future."""


def check_depth(depth: int) -> int:
    """`depth`, if a pipeline can have it; raises InvalidArgument otherwise."""
    number = whole(depth)
    if number is None or not 1 <= number <= OUTSTANDING:
        raise InvalidArgument(f"depth {depth!r} is not a whole number from 1 to {OUTSTANDING}")
    return number


def in_order(frames: Iterable[Any], begin: Begin, depth: int, return_exceptions: bool) -> Iterator[Any]:
    """The results of each frame, in order, with at most `depth` frames under way.

    One frame is taken for one result handed out, once `depth` are under way or the first is done: so a slow source does
    not keep back results that are there, and a slow consumer does not let the pipeline run dry.
    """
    running: deque[Run] = deque()
    try:
        broken: Exception | None = None
        source = enumerate(frames)
        while True:
            try:
                index, frame = next(source)
            except StopIteration:
                break
            except Exception as error:  # of the source: comes out behind the results of the frames before it
                broken = error
                break
            running.append(begin(index, frame))
            if len(running) == depth or running[0].done():
                yield _outcome(running.popleft(), return_exceptions)
        while running:
            yield _outcome(running.popleft(), return_exceptions)
        if broken is not None:
            raise broken
    finally:
        for one in running:
            one.cancel()
        for one in running:
            one.left()


async def in_order_async(
    frames: Iterable[Any] | AsyncIterable[Any], begin: Begin, depth: int, return_exceptions: bool
) -> AsyncIterator[Any]:
    """As `in_order`. Results are handed out as soon as they are there, also while the source is waited for."""
    running: deque[tuple[Run, asyncio.Future[Results]]] = deque()
    take = _taker(frames)
    taking: asyncio.Future[Any] | None = None
    broken: Exception | None = None
    ended, index = False, 0
    try:
        while True:
            if taking is None and not ended and len(running) < depth:
                taking = asyncio.ensure_future(take())
            if taking is None and not running:
                break
            first = {running[0][1]} if running else set()
            await asyncio.wait(first | ({taking} if taking is not None else set()), return_when=asyncio.FIRST_COMPLETED)
            if taking is not None and taking.done():
                try:
                    frame = taking.result()
                except Exception as error:
                    frame, broken = _END, error
                taking = None
                if frame is _END:
                    ended = True
                else:
                    one = begin(index, frame)
                    running.append((one, asyncio.wrap_future(one)))
                    index += 1
            elif running[0][1].done():
                yield _outcome(running.popleft()[1], return_exceptions)
        if broken is not None:
            raise broken
    finally:
        if taking is not None:
            taking.cancel()
            await asyncio.wait({taking})  # until then nobody else could close the source
            if not taking.cancelled():
                taking.exception()  # of its closing; it has been seen to
        for one, wrapped in running:
            one.cancel()
            wrapped.cancel()
            if not wrapped.cancelled():
                wrapped.exception()  # it has been seen to
        for one, _ in running:
            await _in_thread(one.left)


_END: Any = object()
_crew = Crew("zmq-offload-source")


def _taker(frames: Iterable[Any] | AsyncIterable[Any]) -> Callable[[], Awaitable[Any]]:
    """What gives the next frame, or `_END`. An iterator that is not asynchronous may wait, so it does in a thread."""
    if isinstance(frames, AsyncIterable):
        source = aiter(frames)
        return lambda: anext(source, _END)
    plain = iter(frames)

    async def take() -> Any:
        return await _in_thread(lambda: next(plain, _END))

    return take


def _in_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """What `work` returns or raises. Not by the event loop's executor: that has few threads, which sources that wait
    would take from each other, and the program's end waits for all of them."""
    done: Future[Any] = Future()

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


def _outcome(frame: Run | asyncio.Future[Results], return_exceptions: bool) -> Any:
    try:
        return frame.result()
    except OffloadError as error:
        if return_exceptions:
            return error
        raise
