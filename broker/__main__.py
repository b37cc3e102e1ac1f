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
    import os
    from dataclasses import replace

    from broker.config import parse
    from zmq_offload.console import dotenv, logs
    from zmq_offload.console.variables import PREFIX, warn_of_unknown
    from zmq_offload.errors import InvalidArgument

    dotenv.load()
    given = sys.argv[1:] if arguments is None else arguments
    config = parse(given, prog)
    seat = os.environ.pop(f"{PREFIX}BROKER_SEAT", "")
    parent: int | None = None
    if seat:
        try:
            process, restarts, parent = map(int, seat.split(","))
            os.fstat(parent)
        except (OSError, OverflowError, ValueError):
            text = f"{PREFIX}BROKER_SEAT is set by a supervisor for its brokers; unset it"
            raise InvalidArgument(text) from None
        config = replace(config, process=process, restarts=restarts)
        logs.start("broker", config.log, {"process": process})
    else:
        warn_of_unknown("broker")
        logs.start("broker", config.log)
        if len(config.places) > 1:
            from broker.supervisor import Supervisor

            return Supervisor(config, given).run()
    from broker.loop import serve

    return serve(config, parent)


if __name__ == "__main__":
    sys.exit(main())
