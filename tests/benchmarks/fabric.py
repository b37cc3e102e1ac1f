"""Measures what the fabric costs, compared with bare sockets: `python -m tests.benchmarks.fabric`.

Median round trips of `Client.infer` through a broker and an echo worker, of bare pyzmq through `zmq.proxy`, and through
a minimal broker in Python. All send the same bytes, interleaved in one run, with the far end in a process of its own.
Then the brokers' CPU time per request, and the throughput of small requests with clients that pipeline.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.benchmarks.bare import BareClient
from tests.benchmarks.measure import Series, cpu_seconds, interleave
from tests.support.processes import Fabric, running, running_broker, running_workers
from zmq_offload import Client

SIZES = (1024, 38_400, 1 << 20, 1 << 24)


@contextmanager
def fabric(workers: int = 1) -> Iterator[Fabric]:
    with running_broker() as broker, ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(running_workers(broker.backend, "--executor", "echo"))
        with Client(broker.frontend) as client:
            until_served(client, "echo", workers)
        yield broker


def until_served(client: Client, model: str, workers: int = 1) -> None:
    """Wait until that many workers hold the model."""
    end = time.monotonic() + 30
    while not any(m["name"] == model and m["workers"] >= workers for m in client.models()):
        assert time.monotonic() < end, f"no {workers} workers for {model}"
        time.sleep(0.05)


@contextmanager
def bare(kind: str, far_end: str) -> Iterator[tuple[str, str, int]]:
    """Both endpoints and the process id of a bare broker with an echo worker."""
    with running("-m", "tests.benchmarks.bare", kind) as broker:
        ready = broker.wait_for(r"ready (\S+) (\S+)")
        with running("-m", "tests.benchmarks.bare", far_end, ready[2]):
            yield ready[1], ready[2], broker.popen.pid


def latency(sizes: tuple[int, ...], seconds: float) -> dict[int, dict[str, Series]]:
    results = {}
    with fabric() as ours, bare("proxy", "echo") as proxy, bare("minimal", "credit-echo") as minimal:
        watched = {"fabric": [ours.broker.popen.pid], "proxy": [proxy[2]], "minimal": [minimal[2]]}
        through_proxy, through_minimal = BareClient(proxy[0]), BareClient(minimal[0], envelope=True)
        with Client(ours.frontend) as client:
            for size in sizes:
                x = np.random.default_rng(0).random(size // 4, dtype=np.float32)
                data = x.view(np.uint8).data
                calls: dict[str, Any] = {
                    "fabric": lambda x=x: client.infer("echo", {"x": x}),
                    "proxy": lambda data=data: through_proxy(data),
                    "minimal": lambda data=data: through_minimal(data),
                }
                results[size] = interleave(calls, watched, seconds=seconds)
        through_proxy.close()
        through_minimal.close()
    return results


def _pipeline(kind: str, endpoint: str, size: int, depth: int, seconds: float, answer: Any) -> None:
    x = np.zeros(size, np.uint8)
    with ExitStack() as stack:
        if kind == "fabric":
            client = stack.enter_context(Client(endpoint))

            def submit() -> Any:
                return client.submit("echo", {"x": x}).result

        else:
            bare_client = BareClient(endpoint, envelope=True)
            stack.callback(bare_client.close)

            def submit() -> Any:
                bare_client.send(x.data)
                return bare_client.receive

        submit()()
        answer.put(None)
        waiting = deque(submit() for _ in range(depth))
        done = 0
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            waiting.popleft()()
            waiting.append(submit())
            done += 1
        answer.put(done / (time.monotonic() - began))
        for result in waiting:
            result()


@dataclass(frozen=True)
class Rate:
    """Requests per second, and the broker's CPU time for each."""

    requests: float
    broker_cpu: float


def throughput(kind: str, seconds: float, *, size: int = 1024, clients: int = 2, depth: int = 64) -> Rate:
    """The throughput of `clients` processes with `depth` requests in flight each, and two workers."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        if kind == "fabric":
            ours = stack.enter_context(fabric(2))
            endpoint, pid = ours.frontend, ours.broker.popen.pid
        else:
            endpoint, backend, pid = stack.enter_context(bare("minimal", "credit-echo"))
            stack.enter_context(running("-m", "tests.benchmarks.bare", "credit-echo", backend))
        answer = context.Queue()
        processes = [
            context.Process(target=_pipeline, args=(kind, endpoint, size, depth, seconds, answer))
            for _ in range(clients)
        ]
        for process in processes:
            process.start()
        for _ in range(clients):
            answer.get(timeout=60)
        before = cpu_seconds(pid)
        rate = sum(answer.get(timeout=60 + seconds) for _ in range(clients))
        cpu = cpu_seconds(pid) - before
        for process in processes:
            process.join()
    return Rate(rate, cpu / (rate * seconds))


def report(results: dict[int, dict[str, Series]]) -> str:
    """The table of `docs/performance.md`, with the broker's CPU time of a request as it is, too."""
    lines = [
        "| bytes each way | zmq.proxy | minimal Python broker | fabric | fabric / proxy | fabric / minimal "
        "| broker CPU, fabric / minimal | fabric | minimal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, series in results.items():
        ours, proxy, minimal = series["fabric"], series["proxy"], series["minimal"]
        cpu, bare_cpu = ours.cpu_each, minimal.cpu_each
        lines.append(
            f"| {size:,} | {proxy.median * 1e3:.3f} ms | {minimal.median * 1e3:.3f} ms | {ours.median * 1e3:.3f} ms "
            f"| {ours.median / proxy.median:.2f} | {ours.median / minimal.median:.2f} "
            f"| {cpu / bare_cpu:.2f} | {cpu * 1e6:.0f} µs | {bare_cpu * 1e6:.0f} µs |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fabric", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=6.0, metavar="S", help="for each size, and for each broker's throughput [6]"
    )
    sizes = " ".join(map(str, SIZES))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), metavar="BYTES", help=f"of the tensor each way [{sizes}]"
    )
    parser.add_argument("--no-throughput", action="store_true", help="latency only")
    args = parser.parse_args()
    print(report(latency(tuple(args.sizes), args.seconds)), flush=True)
    if not args.no_throughput:
        print("\n1 KB, two clients with 64 requests in flight each, two workers:")
        for kind in ("minimal", "fabric"):
            rate = throughput(kind, args.seconds)
            print(f"{kind}: {rate.requests:,.0f} requests/s, {rate.broker_cpu * 1e6:.0f} µs of broker CPU each")


if __name__ == "__main__":
    main()
