"""The broker's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.admission import QueueLimits
from broker.liveness import LivenessPolicy
from zmq_offload.console.settings import (
    Parser,
    add_option,
    bytes_,
    check_together,
    checked,
    count,
    file,
    heartbeat,
    seconds,
)
from zmq_offload.net.transport import check_endpoint
from zmq_offload.protocol import limits

endpoint = checked(check_endpoint, lambda _: True, "an endpoint")

_POLICY = {
    "heartbeat": (heartbeat, "seconds between probes of a worker"),
    "patience": (seconds, "seconds an idle worker may be silent and still be given requests"),
    "hang_grace": (seconds, "seconds a worker may be busy with a request after its deadline, or quiet"),
    "worker_grace": (seconds, "seconds a request waits for a worker that holds its model to appear"),
    "restart_grace": (seconds, "seconds requests wait for a worker that was lost to come back"),
    "max_attempts": (count, "workers a request may lose before it is given up"),
}
_QUEUE_LIMITS = {
    "max_queued": (count, "requests that may wait in total"),
    "max_queued_bytes": (bytes_, "bytes of the requests that may wait in total"),
    "max_queued_per_model": (count, "requests that may wait for one model"),
    "max_queued_per_client": (count, "requests of one client that may wait for one model"),
}


@dataclass(frozen=True)
class Config:
    """Where to listen and by which policy."""

    frontend: str = "tcp://127.0.0.1:5555"
    backend: str = "tcp://127.0.0.1:5556"
    grace: float = 10.0
    max_frame_bytes: int = limits.MESSAGE_BYTES
    server_key: str | None = None
    authorized_clients: str = ""
    authorized_workers: str = ""
    insecure: bool = False
    policy: LivenessPolicy = field(default_factory=LivenessPolicy)
    queue_limits: QueueLimits = field(default_factory=QueueLimits)


def parse(arguments: Sequence[str] | None = None, prog: str = "python -m broker") -> Config:
    """The options of `zmq-offload broker`, from arguments, environment and defaults."""
    parser = Parser(prog=prog, description="Balances devices' requests over workers. SIGTERM drains and stops it.")
    add_option(parser, "--frontend", endpoint, Config.frontend, "where devices connect", metavar="ENDPOINT")
    add_option(parser, "--backend", endpoint, Config.backend, "where workers connect", metavar="ENDPOINT")
    add_option(parser, "--grace", seconds, 10.0, "seconds to finish requests in when stopped", metavar="S")
    add_option(parser, "--max-frame-bytes", bytes_, limits.MESSAGE_BYTES, "largest tensor, in bytes", metavar="N")
    add_option(parser, "--server-key", file, None, "this broker's NAME.key_secret", metavar="FILE")
    add_option(parser, "--authorized-clients", file, None, "the keys of clients that may connect", metavar="FILE")
    add_option(parser, "--authorized-workers", file, None, "the keys of workers that may connect", metavar="FILE")
    parser.add_argument("--insecure", action="store_true", help="listen beyond loopback without keys")
    for options, defaults in ((_POLICY, LivenessPolicy()), (_QUEUE_LIMITS, QueueLimits())):
        for name, (kind, text) in options.items():
            flag, metavar = "--" + name.replace("_", "-"), "S" if kind in (seconds, heartbeat) else "N"
            add_option(parser, flag, kind, getattr(defaults, name), text, metavar=metavar)
    parsed = parser.parse_args(arguments)
    check_together(parser, parsed, "--server-key", "--authorized-clients", "--authorized-workers")
    given = vars(parsed)
    policy = LivenessPolicy(**{name: given.pop(name) for name in _POLICY})
    queue_limits = QueueLimits(**{name: given.pop(name) for name in _QUEUE_LIMITS})
    return Config(**given, policy=policy, queue_limits=queue_limits)
