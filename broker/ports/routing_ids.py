"""Unguessable routing ids for the broker's connections.

A ROUTER's routing id for a connection is a zero byte and a number. libzmq counts the numbers up from a start that it
takes from the C library's rand(). It never seeds rand(), so that the start would be the same in every broker. A peer
may claim any free routing id. A peer that claims the next number crashes the process with an assertion (libzmq 4.3.5,
socket_base.cpp: `ok` in add_out_pipe); a peer that claims the number of a closed connection gets its messages.
"""

from __future__ import annotations

import ctypes
import os


def randomize() -> None:
    """Make the routing ids of sockets that are created from now on start at a random number."""
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
