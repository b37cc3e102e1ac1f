"""`python -m workers`: the supervisor, and with its pipe in the environment one of its workers."""

from __future__ import annotations

import logging
import os
import sys

from workers.config import parse
from workers.supervisor import CORES, PARENT_FD, Supervisor
from zmq_offload.settings import run


def main() -> int:
    config = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    parent = os.environ.pop(PARENT_FD, None)
    if parent is None:
        return run(lambda: Supervisor(config, sys.argv[1:]).run(), "workers")
    cores = [int(core) for core in os.environ.pop(CORES, "").split(",") if core]
    # A worker runs subgraphs and compiles none: half the memory and the time to start.
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
    from workers.loop import serve

    return run(lambda: serve(config, int(parent), cores), "workers")


if __name__ == "__main__":
    sys.exit(main())
