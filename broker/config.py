"""The broker's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.admission import QueueLimits
from broker.liveness import LivenessPolicy
from broker.places import Place, places_of
from zmq_offload.console.configfile import add_config
from zmq_offload.console.logs import DEFAULT, LogOptions, add_access_log, add_log_options
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import (
    NONE,
    add_option,
    address,
    bytes_,
    check_together,
    checked,
    count,
    file,
    heartbeat,
    listening,
    processes,
    seconds,
    share,
)
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits
from zmq_offload.telemetry.traces.collector import check_collector

collector = checked(check_collector, lambda _: True, "a URL")


_POLICY = {
    "heartbeat": (heartbeat, "seconds between heartbeats to a worker"),
    "patience": (seconds, "seconds of silence after which an idle worker gets no requests"),
    "hang_grace": (seconds, "seconds that a worker may be busy after a request's deadline, or quiet"),
    "worker_grace": (seconds, "seconds that a request waits for a first worker with its model"),
    "restart_grace": (seconds, "seconds that requests wait for a lost worker to come back"),
    "max_attempts": (count, "lost workers after which a request is given up"),
}
_QUEUE_LIMITS = {
    "max_queued": (count, "maximum requests in all queues"),
    "max_queued_bytes": (bytes_, "maximum bytes of the requests in all queues"),
    "max_queued_per_model": (count, "maximum queued requests for one model"),
    "max_queued_per_client": (count, "maximum queued requests of one client for one model"),
}


@dataclass(frozen=True)
class Config:
    """The options of one broker, and of the others beside it."""

    frontend: str = "tcp://127.0.0.1:5555"
    backend: str = "tcp://127.0.0.1:5556"
    grace: float = 10.0
    max_frame_bytes: int = limits.MESSAGE_BYTES
    server_key: str | None = None
    authorized_clients: str = ""
    authorized_workers: str = ""
    insecure: bool = False
    metrics: str = NONE
    """HOST:PORT at which metrics are served."""
    traces: str = NONE
    """URL of the collector that gets spans, or "otel": OpenTelemetry's variables say where it is."""
    trace_share: float = 0.01
    log: LogOptions = DEFAULT
    access_log: float | None = None
    """Seconds after which a request is logged; None: none is."""
    policy: LivenessPolicy = field(default_factory=LivenessPolicy)
    queue_limits: QueueLimits = field(default_factory=QueueLimits)
    places: Sequence[Place] = ()
    """Where the processes listen, if there are several; this one's place is the first."""
    process: int = 0
    """Its number among them."""
    restarts: int = 0
    """How often its supervisor started a process in its place."""


def add_options(parser: Parser) -> None:
    """Add the options of `zmq-offload broker`."""
    parser.description = (
        "Run a broker, which passes clients' requests to workers. SIGTERM stops it after the requests in progress."
    )
    parser.set_example(
        "zmq-offload broker",
        "zmq-offload broker --frontend 'tcp://*:5555' --backend 'tcp://*:5556' \\\n    --insecure",
        "zmq-offload broker --metrics 127.0.0.1:9464",
        "zmq-offload broker --processes 4",
    )
    several = "ENDPOINT,..."
    add_option(parser, "--frontend", listening, Config.frontend, "endpoint for clients", metavar=several)
    add_option(parser, "--backend", listening, Config.backend, "endpoint for workers", metavar=several)
    add_option(
        parser,
        "--processes",
        processes,
        None,
        "broker processes; each has a frontend and a backend, two ports above the one before",
        variable=f"{PREFIX}BROKER_PROCESSES",
        metavar="N",
    )
    add_option(parser, "--grace", seconds, 10.0, "seconds to finish requests after SIGTERM", metavar="S")
    add_option(parser, "--max-frame-bytes", bytes_, limits.MESSAGE_BYTES, "largest tensor, in bytes", metavar="N")
    add_option(parser, "--server-key", file, None, "this broker's NAME.key_secret", metavar="FILE")
    add_option(parser, "--authorized-clients", file, None, "list of the clients' keys", metavar="FILE")
    add_option(parser, "--authorized-workers", file, None, "list of the workers' keys", metavar="FILE")
    add_option(parser, "--metrics", address, NONE, "address for Prometheus, or none", metavar="HOST:PORT")
    add_option(
        parser, "--traces", collector, NONE, "collector of traces (OTLP over HTTP), otel, or none", metavar="URL"
    )
    add_option(parser, "--trace-share", share, 0.01, "share of requests that begin a trace, 0 to 1", metavar="X")
    parser.add_argument("--insecure", action="store_true", help="listen on a network without keys")
    for options, defaults in ((_POLICY, LivenessPolicy()), (_QUEUE_LIMITS, QueueLimits())):
        for name, (kind, text) in options.items():
            flag, metavar = "--" + name.replace("_", "-"), "S" if kind in (seconds, heartbeat) else "N"
            add_option(parser, flag, kind, getattr(defaults, name), text, metavar=metavar)
    add_log_options(parser)
    add_access_log(parser)
    add_config(parser, "broker")


def parse(arguments: Sequence[str] | None = None, prog: str = "python -m broker") -> Config:
    """The options of `zmq-offload broker`, from arguments, a file, the environment and defaults."""
    parser = Parser(prog=prog)
    add_options(parser)
    parsed = parser.parse_args(arguments)
    check_together(parser, parsed, "--server-key", "--authorized-clients", "--authorized-workers")
    given = vars(parsed)
    policy = LivenessPolicy(**{name: given.pop(name) for name in _POLICY})
    queue_limits = QueueLimits(**{name: given.pop(name) for name in _QUEUE_LIMITS})
    log = LogOptions(given.pop("log_level"), given.pop("log_format"))
    try:
        places = places_of(given["frontend"], given["backend"], given["metrics"], given.pop("processes"))
    except InvalidArgument as error:
        parser.error(error.message)
    given |= places[0]._asdict()
    return Config(**given, places=places, log=log, policy=policy, queue_limits=queue_limits)
