"""The workers' options."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.policy import MOST_SLOTS, WorkerPolicy
from zmq_offload.artifacts.batching import Batching
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.devices import CPU, WANTED, named
from zmq_offload.console.configfile import add_config
from zmq_offload.console.logs import DEFAULT, LogOptions, add_log_options
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import (
    ARENA_BYTES,
    add_option,
    arena,
    bytes_,
    check_together,
    checked,
    endpoints,
    file,
    heartbeat,
    microseconds,
    seconds,
    switch,
    threads,
)
from zmq_offload.protocol import limits

kind = checked(str, lambda text: text in ("graph", "echo"), "an executor: graph or echo")
MOST_BY_ITSELF = 4
"""The most processes that `--processes auto` starts. Each keeps the weights of all models in its memory."""

GPU_SLOTS = 4
"""Requests that a process with a GPU may hold: one computes there, the next is staged, and the others are under way
between broker and worker meanwhile."""


def _processes(text: str) -> int | None:
    return None if text == "auto" else int(text)


processes = checked(_processes, lambda n: n is None or 1 <= n <= 1024, "a whole number from 1 to 1024, or auto")
name = checked(
    str,
    lambda text: 1 <= len(text) <= limits.NAME_BYTES and text.isprintable(),
    f"a name of 1 to {limits.NAME_BYTES} printable characters",
)
devices = checked(named, bool, WANTED)
slots = checked(int, lambda n: 1 <= n <= MOST_SLOTS, f"a whole number from 1 to {MOST_SLOTS}")
rows = checked(int, lambda n: 1 <= n <= MOST_SLOTS // 2, f"a whole number from 1 to {MOST_SLOTS // 2}")


@dataclass(frozen=True)
class Config:
    """The options of a supervisor and its workers."""

    brokers: tuple[str, ...] = ("tcp://127.0.0.1:5556",)
    repository: str = "dist/repository"
    executor: str = "graph"
    devices: tuple[str, ...] = (CPU,)
    """What runs versions that were built for a GPU: cpu (nothing), or GPUs, each with processes of its own."""
    name: str = "worker"
    slots: int = 2
    processes: int = 1
    """For each device."""
    threads: int | None = None
    """TVM threads of a process. None: its share of the cores."""
    pin: bool = True
    refresh: float = 5.0
    hang_grace: float = 30.0
    max_frame_bytes: int = limits.MESSAGE_BYTES
    arena_bytes: int = ARENA_BYTES
    batching: Batching | None = None
    key: str | None = None
    broker_key: str | None = None
    log: LogOptions = DEFAULT
    policy: WorkerPolicy = field(default_factory=WorkerPolicy)


def add_options(parser: Parser) -> None:
    """Add the options of `zmq-offload worker`."""
    parser.description = (
        "Run workers, which serve the subgraphs of a model repository. SIGTERM stops them after the requests in "
        "progress."
    )
    parser.set_example(
        "zmq-offload worker --repository dist/repository --processes auto",
        "zmq-offload worker --broker tcp://broker.example:5556 --executor echo",
    )
    policy = WorkerPolicy()
    add_option(parser, "--broker", endpoints, "tcp://127.0.0.1:5556", "backends of the brokers", metavar="ENDPOINT,...")
    add_option(parser, "--repository", file, Config.repository, "the model repository", metavar="DIR")
    add_option(parser, "--executor", kind, "graph", "graph runs TVM, echo returns its inputs", metavar="KIND")
    add_option(parser, "--device", devices, CPU, "cuda:0,... or cuda:all: GPUs, each with processes", metavar="D,...")
    add_option(parser, "--name", name, None, "name in the status, default HOST-PID", metavar="NAME")
    add_option(
        parser, "--slots", slots, None, "requests that a process may hold, default 2, GPU 4, echo 32", metavar="N"
    )
    help = "worker processes, of each GPU if there are any; auto: one per GPU, or one per core, at most 4"
    add_option(parser, "--processes", processes, 1, help, metavar="N")
    add_option(parser, "--threads", threads, None, "TVM threads per process, default cores / processes", metavar="N")
    add_option(parser, "--pin", switch, "on", "bind each process to its own cores", metavar="on|off")
    add_option(parser, "--refresh", seconds, 5.0, "seconds between scans of the repository", metavar="S")
    add_option(parser, "--worker-key", file, None, "this worker's NAME.key_secret", metavar="FILE")
    add_option(parser, "--broker-key", file, None, "the brokers' NAME.key", metavar="FILE")
    add_option(parser, "--heartbeat", heartbeat, policy.heartbeat, "seconds between heartbeats", metavar="S")
    add_option(
        parser, "--patience", seconds, policy.patience, "seconds of silence after which a broker is lost", metavar="S"
    )
    add_option(
        parser, "--drain", seconds, policy.drain, "maximum seconds to wait for brokers after SIGTERM", metavar="S"
    )
    add_option(parser, "--hang-grace", seconds, 30.0, "seconds that a subgraph may run after its deadline", metavar="S")
    add_option(parser, "--max-frame-bytes", bytes_, limits.MESSAGE_BYTES, "largest tensor, in bytes", metavar="N")
    add_option(
        parser,
        "--arena-bytes",
        arena,
        ARENA_BYTES,
        "shared memory for outputs that others on this host read; 0: none",
        metavar="N",
    )
    add_option(parser, "--max-batch", rows, None, "maximum rows per batch, instead of model.json's", metavar="N")
    add_option(
        parser, "--batch-delay", microseconds, None, "maximum microseconds that a batch waits for more", metavar="US"
    )
    add_log_options(parser)
    add_config(parser, "worker", above={"backend": "broker"})


def parse(arguments: Sequence[str] | None = None, prog: str = "python -m workers") -> Config:
    """The options of `zmq-offload worker`, from arguments, a file, the environment and defaults."""
    parser = Parser(prog=prog)
    add_options(parser)
    given = parser.parse_args(arguments)
    if given.batch_delay is not None and given.max_batch is None:
        parser.error("--batch-delay needs --max-batch")
    check_together(parser, given, "--worker-key", "--broker-key")
    on_gpus = given.device != (CPU,)
    slots = 32 if given.executor == "echo" else GPU_SLOTS if on_gpus else 2
    if given.processes is None:
        given.processes = 1 if on_gpus else min(usable_cores(), MOST_BY_ITSELF)
    return Config(
        brokers=given.broker,
        repository=given.repository,
        executor=given.executor,
        devices=given.device,
        name=given.name or f"{socket.gethostname()}-{os.getpid()}",
        slots=given.slots or slots,
        processes=given.processes,
        threads=given.threads,
        pin=given.pin == "on",
        refresh=given.refresh,
        hang_grace=given.hang_grace,
        max_frame_bytes=given.max_frame_bytes,
        arena_bytes=given.arena_bytes,
        batching=None if given.max_batch is None else Batching(given.max_batch, given.batch_delay or 0),
        key=given.worker_key,
        broker_key=given.broker_key,
        log=LogOptions(given.log_level, given.log_format),
        policy=WorkerPolicy(given.heartbeat, given.patience, given.drain),
    )
