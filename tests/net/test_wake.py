"""A poll ends for a signal at whatever moment it arrives."""

from __future__ import annotations

import select
import signal
import threading

import zmq

from zmq_offload.net.transport import Wake


def test_a_signal_that_arrives_before_the_poll_ends_it() -> None:
    wake = Wake()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        wake.set_on(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert select.select([wake], [], [], 10)[0], "the signal is written before any handler in Python runs"
        wake.clear()
        assert not select.select([wake], [], [], 0)[0]
    finally:
        signal.signal(signal.SIGUSR1, before)
        wake.close()
    assert signal.set_wakeup_fd(-1) == -1, "nothing is written to the descriptor after it is closed"


def test_a_signal_that_does_not_interrupt_the_poll_ends_it() -> None:
    """Another thread takes the signal, so that Python runs no handler before the main thread's poll ends."""
    wake = Wake()
    before = signal.getsignal(signal.SIGUSR1)
    other = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
    try:
        wake.set_on(signal.SIGUSR1)
        other.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        assert zmq.zmq_poll([(wake.fileno(), zmq.POLLIN)], 10_000), "the signal did not end the poll"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        other.join()
        signal.signal(signal.SIGUSR1, before)
        wake.close()
