"""A sending process of `zmq-offload load`. Its argument is the file descriptor of its pipe."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from zmq_offload.loadgen.sender import main

if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
