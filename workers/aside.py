"""Runs something beside requests, in threads that leave the cores to them."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from zmq_offload.runtime.threads import Affinity, configure_pool

IDLE_FOR = 5.0
"""Seconds in which only time is taken that no other thread wants. On a machine whose cores are always busy, the runs
that are left then take a share, with a low priority, so that they come to an end."""

_NICER = 10
"""How much the nice value of such a thread is above that of its caller."""


def run_aside(run: Callable[[], object], times: int, cores: Sequence[int] = (), idle_for: float = IDLE_FOR) -> None:
    """Call `run` so many times, on any one of `cores` at a time, and return when that is done.

    Raises what `run` raises.
    """
    left = times
    failed: list[Exception] = []

    def go_on(give_way: Callable[[], None], seconds: float) -> None:
        nonlocal left
        try:
            with suppress(OSError):
                give_way()
            if cores:
                configure_pool(Affinity.ONE_CORE_PER_THREAD, 1, cores)
            until = time.monotonic() + seconds
            while left and time.monotonic() < until:
                run()
                left -= 1
        except Exception as error:
            failed.append(error)

    for how in ((_be_idle, idle_for), (_be_nice, math.inf)):
        if left and not failed:
            thread = threading.Thread(target=go_on, args=how, name="warm-up", daemon=True)
            thread.start()
            thread.join()
    if failed:
        raise failed[0]


def _be_idle() -> None:
    """Let the calling thread run only while no other wants its core. It cannot be taken back without privileges.

    A low priority does not suffice: with Linux's EEVDF scheduler, a thread that wakes may have to wait until the slice
    of the other one ends, after 3 ms.
    """
    os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def _be_nice() -> None:
    """Let the calling thread give way to others, but get a share of its core."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICER)
