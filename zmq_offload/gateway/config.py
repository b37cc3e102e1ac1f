"""The gateway's options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from zmq_offload.console.configfile import add_config
from zmq_offload.console.logs import DEFAULT, LogOptions, add_access_log, add_log_options
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import (
    ARENA_BYTES,
    FRONTEND,
    NONE,
    add_frontend,
    add_option,
    address,
    arena,
    bytes_,
    check_together,
    checked,
    count,
    file,
    seconds,
    share,
    switch,
)
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.http.cors import origins_of
from zmq_offload.net.transport import check_endpoint
from zmq_offload.protocol import limits
from zmq_offload.telemetry.traces.collector import check_collector


def ports(text: str) -> tuple[str, str]:
    """Return frontend and backend of FRONTEND,BACKEND. Raises InvalidArgument otherwise."""
    frontend, comma, backend = text.partition(",")
    if not comma:
        raise InvalidArgument(f"{text!r} is not two endpoints; use FRONTEND,BACKEND, such as tcp://*:5555,tcp://*:5556")
    return check_endpoint(frontend.strip()), check_endpoint(backend.strip())


def _check_redis(text: str) -> str:
    parts = urlsplit(text)
    if not (parts.netloc if parts.scheme in ("redis", "rediss") else parts.scheme == "unix" and parts.path):
        raise InvalidArgument(
            f"{text!r} is not a URL of Redis; use redis://HOST:PORT/DATABASE, rediss:// or unix://PATH"
        )
    return text


_redis = checked(_check_redis, lambda _: True, "a URL of Redis")

_ports = checked(ports, lambda _: True, "FRONTEND,BACKEND")

_collector = checked(check_collector, lambda _: True, "a URL")

_origins = checked(origins_of, lambda _: True, "ORIGIN,...")

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Config:
    """The options of one gateway."""

    broker: Sequence[str] = (FRONTEND,)
    spread: bool = True
    """Whether the first of several brokers is drawn."""
    with_broker: tuple[str, str] | None = None
    """Frontend and backend of a broker in the gateway's process, each empty if it is the broker's own option that
    counts."""
    config_file: str | None = None
    """The file of options, which a broker in this process reads, too."""
    http: str = "127.0.0.1:8000"
    grpc: str = "127.0.0.1:8001"
    timeout: float = 10.0
    grace: float = 10.0
    max_frame_bytes: int = limits.MESSAGE_BYTES
    model_control: bool = False
    repository: str | None = None
    dashboard: bool = False
    client_key: str | None = None
    broker_key: str | None = None
    access_list: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    client_ca: str | None = None
    cors_origins: Sequence[str] | None = None
    insecure: bool = False
    metrics: str = NONE
    """HOST:PORT at which metrics are served."""
    triton_metrics: bool = False
    system_shared_memory: bool = False
    max_body_bytes: int = 272 * _MEBIBYTE
    max_held_bytes: int = 2048 * _MEBIBYTE
    arena_bytes: int = ARENA_BYTES
    cache_bytes: int = 256 * _MEBIBYTE
    cache_redis: str | None = None
    traces: str = NONE
    trace_share: float = 0.01
    max_header_bytes: int = 64 * 1024
    max_connections: int = 16384
    max_streams: int = 256
    idle_timeout: float = 120.0
    receive_timeout: float = 20.0
    log: LogOptions = DEFAULT
    access_log: float | None = None
    """Seconds after which a request is logged; None: none is."""

    @property
    def addresses(self) -> list[str]:
        """Those of the ports that are wanted."""
        return [address for address in (self.http, self.grpc) if address != NONE]

    def fitting(self, files: int) -> Config:
        """These options with connections for which there are files. Without a file, no list could be read again."""
        most = max(1, files // (len(self.addresses) + (self.with_broker is not None)))
        return replace(self, max_connections=min(self.max_connections, most))


def add_options(parser: Parser) -> None:
    """Add the options of `zmq-offload gateway`."""
    parser.description = (
        "Run a gateway, which takes requests over HTTP and gRPC and passes them to a broker. SIGTERM stops it after "
        "the requests in progress."
    )
    parser.set_example(
        "zmq-offload gateway",
        "zmq-offload gateway --broker tcp://edge-1:5555,tcp://edge-2:5555 --grpc none",
        "zmq-offload gateway --with-broker --metrics 127.0.0.1:9465",
    )
    add_frontend(parser)
    add_option(parser, "--spread", switch, "on", "use any of several brokers, or the first", metavar="on|off")
    parser.add_argument(
        "--with-broker",
        nargs="?",
        type=_ports,
        const=("", ""),
        help="run a broker in this process, instead of --broker; its other options are in variables or the file",
        metavar="FRONTEND,BACKEND",
    )
    add_option(parser, "--http", address, Config.http, "address for HTTP, or none", metavar="HOST:PORT")
    add_option(parser, "--grpc", address, Config.grpc, "address for gRPC, or none", metavar="HOST:PORT")
    add_option(parser, "--timeout", seconds, Config.timeout, "seconds for requests that name no time", metavar="S")
    add_option(parser, "--grace", seconds, Config.grace, "seconds to finish requests after SIGTERM", metavar="S")
    add_option(parser, "--max-frame-bytes", bytes_, limits.MESSAGE_BYTES, "largest tensor, in bytes", metavar="N")
    add_option(parser, "--client-key", file, None, "this gateway's NAME.key_secret", metavar="FILE")
    add_option(parser, "--broker-key", file, None, "the broker's NAME.key", metavar="FILE")
    add_option(parser, "--access-list", file, None, "list of tokens and client certificates", metavar="FILE")
    add_option(parser, "--tls-cert", file, None, "this gateway's certificate, in PEM", metavar="FILE")
    add_option(parser, "--tls-key", file, None, "the key of that certificate", metavar="FILE")
    add_option(parser, "--client-ca", file, None, "authorities of the clients' certificates", metavar="FILE")
    add_option(parser, "--cors-origins", _origins, None, "origins of web pages that may call, or *", metavar="URL,...")
    # A variable of its own: gateway and broker often share their variables, and each needs a port.
    variable = f"{PREFIX}GATEWAY_METRICS"
    text = "address for Prometheus, or none"
    add_option(parser, "--metrics", address, NONE, text, variable=variable, metavar="HOST:PORT")
    add_option(parser, "--triton-metrics", switch, "off", "serve metrics by Triton's names, too", metavar="on|off")
    parser.add_argument("--insecure", action="store_true", help="listen on a network without tokens or certificates")
    parser.add_argument("--system-shared-memory", action="store_true", help="let clients name files of /dev/shm")
    parser.add_argument("--model-control", action="store_true", help="let clients load and unload models here")
    parser.add_argument("--repository", type=file, help="the repository that model control changes", metavar="DIR")
    parser.add_argument("--dashboard", action="store_true", help="serve a page that shows the broker, at /dashboard")
    add_option(parser, "--cache-redis", _redis, None, "keep answers in this Redis server, not here", metavar="URL")
    add_option(
        parser, "--traces", _collector, NONE, "collector of traces (OTLP over HTTP), otel, or none", metavar="URL"
    )
    add_option(parser, "--trace-share", share, 0.01, "share of requests that begin a trace, 0 to 1", metavar="X")
    for flag, kind, text in _LIMITS:
        default = getattr(Config, flag.removeprefix("--").replace("-", "_"))
        add_option(parser, flag, kind, default, text, metavar="S" if kind is seconds else "N")
    add_log_options(parser)
    add_access_log(parser)
    add_config(parser, "gateway")


_LIMITS = (
    ("--max-body-bytes", bytes_, "largest body or message of a request, in bytes"),
    ("--max-held-bytes", bytes_, "bodies and unread answers of all requests at once, in bytes"),
    ("--arena-bytes", arena, "shared memory for tensors that workers on this host read in place; 0: none"),
    ("--cache-bytes", arena, "memory for answers of models whose config.toml has a cache; 0: none"),
    ("--max-header-bytes", bytes_, "all headers of a request, in bytes"),
    ("--max-connections", count, "connections of a port"),
    ("--max-streams", count, "concurrent calls of a gRPC connection"),
    ("--idle-timeout", seconds, "seconds that a connection stays open without a request"),
    ("--receive-timeout", seconds, "seconds for a request's headers"),
)


def parse(arguments: Sequence[str] | None = None, prog: str = "zmq-offload gateway") -> Config:
    """The options of `zmq-offload gateway`, from arguments, a file, the environment and defaults."""
    parser = Parser(prog=prog)
    add_options(parser)
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parser.parse_args(given)
    check_together(parser, parsed, "--client-key", "--broker-key")
    check_together(parser, parsed, "--tls-cert", "--tls-key")
    if parsed.with_broker is not None and any(word.partition("=")[0] == "--broker" for word in given):
        parser.error("--with-broker with --broker; the gateway uses the broker in its process, so give one of them")
    if parsed.with_broker is not None and parsed.client_key:
        parser.error("--with-broker with --client-key; a broker in this process has no keys, so give one of them")
    for other in ("tls_cert", "access_list"):
        if parsed.client_ca and not getattr(parsed, other):
            parser.error(f"--client-ca without --{other.replace('_', '-')}; client certificates need both")
    if parsed.dashboard and parsed.http == NONE:
        parser.error("--dashboard with --http none; the page is served over HTTP, so give --http HOST:PORT")
    if parsed.http == parsed.grpc == NONE:
        parser.error("--http none with --grpc none; a gateway needs one of the two ports")
    parsed.spread = parsed.spread == "on"
    parsed.triton_metrics = parsed.triton_metrics == "on"
    if parsed.triton_metrics and parsed.metrics == NONE:
        parser.error("--triton-metrics on without --metrics; say at which HOST:PORT they are served")
    values = vars(parsed)
    values["log"] = LogOptions(values.pop("log_level"), values.pop("log_format"))
    return Config(**values, config_file=parser.config_file)
