"""The names that libzmq gives to connections, and why no peer can know one.

A ROUTER names a connection by a zero byte and a number that it counts on from a start. libzmq draws the start from the
C library's rand(), which it never seeds, so that it would be the same in each broker; and a peer may claim any name
that nobody has. One that claims the next number in advance ends the process by an assertion (libzmq 4.3.5,
socket_base.cpp: `ok` in add_out_pipe); one that claims a number whose connection is gone gets what is sent there.
"""

from __future__ import annotations

import ctypes
import os


def randomize() -> None:
    """Let sockets that are made from now on begin at numbers that nobody can guess."""
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
