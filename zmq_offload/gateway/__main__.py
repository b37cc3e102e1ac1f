"""`zmq-offload gateway`, or `python -m zmq_offload.gateway`."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes time, in which Ctrl-C would print a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmq_offload.gateway.config import Config
    from zmq_offload.gateway.server import Host


def main(arguments: Sequence[str] | None = None, prog: str = "python -m zmq_offload.gateway") -> int:
    """Run a gateway. Exit codes: 0 stopped, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.console.interrupts import quiet_ctrl_c

        with quiet_ctrl_c():
            from zmq_offload.console.programs import run

            return run(lambda: _serve(arguments, prog), "gateway")
    except KeyboardInterrupt:  # before the handler is set
        return 130


def _serve(arguments: Sequence[str] | None, prog: str) -> int:
    from zmq_offload.common.extras import needs
    from zmq_offload.console import dotenv, logs
    from zmq_offload.console.variables import warn_of_unknown
    from zmq_offload.gateway.config import parse

    dotenv.load()
    config = parse(arguments, prog)
    warn_of_unknown("gateway")
    logs.start("gateway", config.log)
    with needs("gateway"):
        from zmq_offload.gateway.server import serve
    if config.with_broker is None:
        return serve(config)
    return serve(config, _host(config, prog))


def _host(config: Config, prog: str) -> Host:
    """What starts a broker beside the gateway. What is no option of the gateway comes from the broker's variables."""
    import logging
    from functools import partial

    from zmq_offload.console.programs import own
    from zmq_offload.console.settings import NONE

    assert config.with_broker is not None
    given = ["--processes", "1", "--grace", str(config.grace), "--max-frame-bytes", str(config.max_frame_bytes)]
    for flag, endpoint in zip(("--frontend", "--backend"), config.with_broker, strict=True):
        given += [flag, endpoint] if endpoint else []
    if config.config_file is not None:
        given += ["--config", config.config_file]
    if config.insecure:
        given.append("--insecure")
    if config.traces != NONE:
        given += ["--traces", config.traces, "--trace-share", str(config.trace_share)]
    options = own("broker.config").parse(given, prog)
    if options.metrics != NONE and config.metrics == NONE:
        logging.getLogger("gateway").warning(
            "metrics at %s are for a broker of its own, and not served; a gateway with a broker serves both by "
            "--metrics or ZMQ_OFFLOAD_GATEWAY_METRICS",
            options.metrics,
        )
    return partial(own("broker.guest").Guest, options)


if __name__ == "__main__":
    sys.exit(main())
