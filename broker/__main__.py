"""`zmq-offload broker`, or `python -m broker`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "python -m broker") -> int:
    """Exit codes: 0 stopped as told, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.programs import run

        return run(lambda: _serve(arguments, prog), "broker")
    except KeyboardInterrupt:  # while the first modules are imported
        return 130


def _serve(arguments: Sequence[str] | None, prog: str) -> int:
    import logging

    from broker.config import parse
    from zmq_offload.variables import warn_of_unknown

    config = parse(arguments, prog)
    warn_of_unknown("broker")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    from broker.loop import serve

    return serve(config)


if __name__ == "__main__":
    sys.exit(main())
