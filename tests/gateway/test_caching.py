"""A gateway that gives kept answers, in front of a fabric without a broker."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import Internal, InvalidArgument, OffloadError
from zmq_offload.gateway.caching import CachingFabric, OwnMemory
from zmq_offload.gateway.calls import Call, Outputs
from zmq_offload.gateway.catalog import CachePolicy, Catalog, Model
from zmq_offload.gateway.rediscache import LARGEST, Redis, name_of
from zmq_offload.gateway.responsecache import Frames, Key, ResponseCache
from zmq_offload.net.grants import Grant
from zmq_offload.protocol.packed import Packed, pack
from zmq_offload.protocol.payload import Buffer

KEPT = replace(model("kept"), cache=CachePolicy(60.0, "sha256:1"))
PLAIN = model("plain")


def packed(value: float) -> Packed:
    return pack({"x": np.full(3, value, np.float32)})


class Bench:
    """A caching fabric, and what came of its calls."""

    def __init__(self, *models: Model, nbytes: int = 10**6) -> None:
        self.inner = FakeFabric(*models)
        self.now = 100.0
        self.store = OwnMemory(ResponseCache(nbytes), lambda: self.now)
        self.fabric = CachingFabric(self.inner, self.store, lambda: self.now)
        self.fabric.look(self.inner.catalog)
        self.outcomes: list[Outputs | OffloadError] = []

    def infer(self, name: str = "kept", value: float = 1.0, grant: Grant = ALL, **more: Any) -> Outputs | OffloadError:
        self.fabric.infer(Call(name, more.pop("version", None), packed(value), **more), grant, self.outcomes.append)
        return self.outcomes[-1]


def test_a_request_like_an_earlier_one_is_answered_without_a_worker() -> None:
    bench = Bench(KEPT)
    first = bench.infer()
    bench.now += 1
    second = bench.infer()
    assert isinstance(first, Outputs) and isinstance(second, Outputs)
    assert (second.model, second.version, len(bench.inner.calls)) == ("kept", 1, 1)
    np.testing.assert_array_equal(second.tensors["x"], first.tensors["x"])
    assert second.timings == (0.0, 0.0, 0.0, 0.0)
    statistics = bench.fabric.statistics.of("kept", 1)
    assert (statistics.cache_hit.count, statistics.cache_miss.count) == (1, 1)


def test_other_inputs_and_models_without_a_cache_go_to_a_worker() -> None:
    bench = Bench(KEPT, PLAIN)
    for value in (1.0, 2.0):
        bench.infer(value=value)
    for _ in range(2):
        bench.infer("plain")
    assert [call.model for call in bench.inner.calls] == ["kept", "kept", "plain", "plain"]
    assert bench.fabric.statistics.of("kept", 1).cache_miss.count == 2
    assert bench.fabric.statistics.of("plain", 1).cache_miss.count == 0


def test_the_list_of_models_is_wanted_only_if_requests_came_that_it_may_change() -> None:
    bench = Bench(KEPT, PLAIN)
    assert not bench.fabric.unsure, "it was just looked at"
    bench.infer()
    bench.infer()
    assert not bench.fabric.unsure, "each lookup has a list of its own"
    bench.infer("plain")
    assert bench.fabric.unsure, "the model may have a cache by now"
    bench.fabric.look(Internal("no broker"))
    assert bench.fabric.unsure
    bench.fabric.look(bench.inner.catalog)
    assert not bench.fabric.unsure
    bench.inner.catalog = Catalog([replace(KEPT, cache=None)])
    bench.infer()
    assert bench.fabric.unsure, "the model has no cache any more"


@pytest.mark.parametrize("hold", [False, True])
def test_a_request_that_has_ended_leaves_no_cycle(hold: bool) -> None:
    class Ending:
        def __call__(self, outcome: Outputs | OffloadError) -> None: ...

    bench = Bench(KEPT)
    ending = Ending()
    alive = weakref.ref(ending)
    gc.disable()
    try:
        bench.inner.hold = hold
        cancel = bench.fabric.infer(Call("kept", None, packed(1.0)), ALL, ending)
        for _ in range(2):  # the list of models, then the request
            bench.inner.release()
        assert len(bench.inner.calls) == 1
        del cancel, ending
        assert alive() is None
    finally:
        gc.enable()


def test_an_answer_is_forgotten_after_its_time() -> None:
    bench = Bench(KEPT)
    bench.infer()
    bench.now += 60
    bench.infer()
    assert len(bench.inner.calls) == 2


def test_a_new_build_or_version_is_not_answered_from_the_old_one() -> None:
    bench = Bench(KEPT)
    bench.infer()
    bench.inner.catalog = Catalog([replace(KEPT, cache=CachePolicy(60.0, "sha256:2"))])
    bench.infer()
    bench.inner.catalog = Catalog([replace(KEPT, latest=False), replace(KEPT, version=2)])
    bench.infer()
    assert len(bench.inner.calls) == 3
    bench.infer(version=1)  # its own answer is still there
    assert len(bench.inner.calls) == 3


def test_an_answer_of_another_version_than_the_looked_up_one_is_not_kept() -> None:
    bench = Bench(replace(KEPT, version=2))  # the fabric without a broker runs version 1 for the latest
    for _ in range(2):
        bench.infer()
    assert len(bench.inner.calls) == 2


def test_a_label_stands_for_a_version_whose_answers_are_kept() -> None:
    labeled = replace(KEPT, latest=False, labels=("stable",), canary=True)
    bench = Bench(labeled, replace(KEPT, version=2, canary=True))
    for label in ("stable", "stable", "unknown"):
        bench.infer(label=label)
    assert [call.label for call in bench.inner.calls] == ["stable", "unknown"]


def test_the_latest_version_of_a_model_with_a_canary_is_left_to_the_broker() -> None:
    bench = Bench(replace(KEPT, canary=True))
    for _ in range(2):
        bench.infer()
    assert len(bench.inner.calls) == 2
    for _ in range(2):
        bench.infer(version=1)
    assert len(bench.inner.calls) == 3


def test_errors_are_not_kept() -> None:
    bench = Bench(KEPT)
    bench.inner.run = lambda call: Internal("it broke")
    assert isinstance(bench.infer(), Internal)
    bench.inner.run = lambda call: call.inputs
    assert isinstance(bench.infer(), Outputs)


def test_nobody_gets_a_kept_answer_of_a_model_that_is_not_for_him_or_is_unloaded() -> None:
    bench = Bench(KEPT)
    bench.infer()
    bench.infer(grant=Grant("other", frozenset({"plain"})))
    assert len(bench.inner.calls) == 2, "the fabric is asked, which refuses"
    bench.inner.control.closed.add("kept")
    bench.infer()
    assert len(bench.inner.calls) == 3


def test_without_a_list_of_models_requests_go_to_a_worker() -> None:
    bench = Bench(KEPT)
    bench.fabric.look(Internal("no broker"))  # the last list counts
    bench.inner.catalog = Internal("no broker")
    bench.infer()
    bench.inner.catalog = Catalog([])
    bench.infer()
    assert len(bench.inner.calls) == 2


def test_a_lookup_takes_from_the_time_of_its_request() -> None:
    bench = Bench(KEPT)
    bench.inner.hold = True
    bench.fabric.infer(Call("kept", None, packed(1.0), 5.0), ALL, bench.outcomes.append)
    bench.now += 2
    bench.inner.hold = False
    bench.inner.release()
    assert bench.inner.calls[0].timeout == 3.0


def test_a_canceled_request_is_not_run_and_does_not_end() -> None:
    bench = Bench(KEPT)
    bench.inner.hold = True
    bench.fabric.infer(Call("kept", None, packed(1.0)), ALL, bench.outcomes.append)()  # while the list is asked for
    cancel = bench.fabric.infer(Call("kept", None, packed(1.0)), ALL, bench.outcomes.append)
    bench.inner.release()  # the list came, the worker runs
    cancel()
    bench.inner.release()
    assert (bench.outcomes, bench.inner.canceled) == ([], 2)


def test_a_request_that_is_canceled_while_its_answer_is_looked_up_does_not_end() -> None:
    bench = Bench(KEPT)
    later: list[Callable[[Frames | None], None]] = []

    class Slow(OwnMemory):
        def get(self, key: Key, found: Callable[[Frames | None], None]) -> None:
            later.append(found)

    bench.fabric = CachingFabric(bench.inner, Slow(ResponseCache(10)), lambda: bench.now)
    bench.fabric.look(bench.inner.catalog)
    bench.fabric.infer(Call("kept", None, packed(1.0)), ALL, bench.outcomes.append)()
    later[0](None)
    assert (bench.outcomes, bench.inner.calls) == ([], [])


def test_an_entry_that_is_not_ours_is_replaced() -> None:
    bench = Bench(KEPT)
    bench.infer()
    cache = bench.store.cache
    (key,) = cache._entries
    cache.put(key, [b"not an answer"], 60.0, bench.now)
    assert isinstance(bench.infer(), Outputs)
    assert isinstance(bench.infer(), Outputs)
    assert len(bench.inner.calls) == 2


def test_it_is_the_fabric_for_everything_else() -> None:
    bench = Bench(KEPT)
    answers: list[object] = []
    bench.fabric.models(ALL, answers.append)
    bench.fabric.unload("kept", ALL, answers.append)
    bench.fabric.load("kept", ALL, answers.append)
    assert [answer for answer in answers if isinstance(answer, Catalog)] and answers[1:] == [None, None]
    assert bench.fabric.statistics is bench.inner.statistics
    assert bench.fabric.stopping is False
    bench.store.close()


# --- Redis ----------------------------------------------------------------------------------------------------


KEY = Key("m", 1, bytes(32))


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis server of the test's own, at a socket file."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    socket = tmp_path / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("accept connections at" in line or "Ready to accept" in line for line in process.stdout)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.communicate()


async def found_in(store: Redis, key: Key = KEY) -> Frames | None:
    future: asyncio.Future[Frames | None] = asyncio.get_running_loop().create_future()
    store.get(key, future.set_result)
    return await future


async def settled(store: Redis) -> None:
    await asyncio.gather(*store._tasks)


def test_two_gateways_share_answers_in_redis(redis_url: str) -> None:
    async def run() -> None:
        one, other = Redis(redis_url), Redis(redis_url)
        assert await found_in(one) is None
        frames: Sequence[Buffer] = [b"head", memoryview(b"tensor")]
        one.put(KEY, frames, 30.0)
        await settled(one)
        assert await found_in(other) == [b"head", b"tensor"]
        assert 0 < await other._client.pttl(name_of(KEY)) <= 30_000
        await other._client.set(name_of(KEY), b"not ours")
        assert await found_in(one) is None
        await other._client.set(name_of(KEY), b"\x91\x01")  # msgpack, but no frames
        assert await found_in(one) is None
        one.close()
        assert await found_in(one) is None
        await other._client.aclose()

    asyncio.run(run())


def test_a_gateway_answers_from_redis(redis_url: str) -> None:
    async def run() -> None:
        inner, store = FakeFabric(KEPT), Redis(redis_url)
        fabric = CachingFabric(inner, store)
        fabric.look(inner.catalog)
        for _ in range(2):
            ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            fabric.infer(Call("kept", None, packed(7.0)), ALL, ended.set_result)
            outputs = await ended
            await settled(store)
        np.testing.assert_array_equal(outputs.tensors["x"], np.full(3, 7.0, np.float32))
        assert len(inner.calls) == 1
        await store._client.aclose()

    asyncio.run(run())


def test_without_a_server_answers_count_as_missing_and_it_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = Redis("redis://:secret@127.0.0.1:1/0")
        assert await found_in(store) is None
        await settled(store)
        store.put(KEY, [b"x"], 1.0)
        assert await found_in(store) is None
        assert not store._tasks
        await store._client.aclose()

    asyncio.run(run())
    (record,) = caplog.records
    assert record.getMessage().startswith("the cache at redis 127.0.0.1:1 is not used for 2 s: ")
    assert "secret" not in caplog.text


def test_an_answer_that_would_look_like_a_server_that_hangs_is_not_kept() -> None:
    async def run() -> None:
        store = Redis("redis://127.0.0.1:1/0")
        store.put(KEY, [b"head", bytes(LARGEST)], 1.0)
        assert not store._tasks
        store.close()
        await asyncio.sleep(0)

    asyncio.run(run())


def test_a_url_that_is_not_of_redis_is_refused() -> None:
    async def run() -> None:
        with pytest.raises(InvalidArgument, match=r"--cache-redis: .*; use redis://HOST:PORT/DATABASE"):
            Redis("http://x")

    asyncio.run(run())
