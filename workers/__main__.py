"""`zmq-offload worker`, or `python -m workers`: a supervisor, or its worker if the environment has its pipe."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # without importing typing: Ctrl-C during an import before `main` would print a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "python -m workers") -> int:
    """Exit codes: 0 stopped as told, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.console.interrupts import quiet_ctrl_c

        with quiet_ctrl_c():
            from zmq_offload.console.programs import run

            return run(lambda: _run(sys.argv[1:] if arguments is None else arguments, prog), "workers")
    except KeyboardInterrupt:  # before the handler is installed
        return 130


def _run(arguments: Sequence[str], prog: str) -> int:
    import importlib
    import os

    from workers.config import parse
    from workers.supervisor import LOG_FD, PARENT_FD, SEAT, Supervisor
    from zmq_offload.common.extras import needs
    from zmq_offload.console import dotenv, logs
    from zmq_offload.console.variables import warn_of_unknown
    from zmq_offload.errors import InvalidArgument
    from zmq_offload.runtime import runtime_only

    dotenv.load()
    config = parse(arguments, prog)
    given, sat, log_fd = (os.environ.pop(name, "") for name in (PARENT_FD, SEAT, LOG_FD))
    if not given:
        logs.start("worker", config.log)
        warn_of_unknown("workers")
        return Supervisor(config, arguments).run()
    try:
        parent = int(given)
        seat, restarts = map(int, sat.split(","))
        descriptor = int(log_fd or 2)
        os.fstat(parent)
        os.fstat(descriptor)
    except (OSError, OverflowError, ValueError):
        raise InvalidArgument(
            f"{PARENT_FD}, {SEAT} and {LOG_FD} are set by a supervisor for its workers; unset them"
        ) from None
    logs.start("worker", config.log, {"worker": config.name}, descriptor)
    runtime_only.use()
    if config.executor == "graph":
        with needs("tvm"):
            importlib.import_module("workers.executor")
    from workers.loop import serve
    from workers.placed import take

    where = take(parent)
    return 0 if where is None else serve(config, parent, where, seat, restarts)


if __name__ == "__main__":
    sys.exit(main())
