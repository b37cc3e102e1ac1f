"""`python -m broker`."""

from __future__ import annotations

import logging
import sys

from broker.config import parse
from broker.loop import serve
from zmq_offload.settings import run


def main() -> int:
    config = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return run(lambda: serve(config), "broker")


if __name__ == "__main__":
    sys.exit(main())
