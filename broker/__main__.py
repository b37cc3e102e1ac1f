"""`zmq-offload broker`, or `python -m broker`."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes time, in which Ctrl-C would print a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "python -m broker") -> int:
    """Run a broker. Exit codes: 0 stopped, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.console.interrupts import quiet_ctrl_c

        with quiet_ctrl_c():
            from zmq_offload.console.programs import run

            return run(lambda: _serve(arguments, prog), "broker")
    except KeyboardInterrupt:  # before the handler is set
        return 130


def _serve(arguments: Sequence[str] | None, prog: str) -> int:
    from broker.config import parse
    from zmq_offload.console import dotenv, logs
    from zmq_offload.console.variables import warn_of_unknown

    dotenv.load()
    config = parse(arguments, prog)
    warn_of_unknown("broker")
    logs.start("broker", config.log)
    from broker.loop import serve

    return serve(config)


if __name__ == "__main__":
    sys.exit(main())
