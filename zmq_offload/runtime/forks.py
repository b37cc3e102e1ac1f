"""Whether TVM can run in this process: not in a forked child of a process in which it ran.

TVM keeps a pool of threads for each thread that runs a model, and destroys it when that thread ends. A forked child has
the pool but not its threads. A run would wait for them, and so it is refused. The destructor would wait, too
(pthread_cond_destroy for waiters, pthread_join for threads), and the child would never end. So it is dropped.
"""

from __future__ import annotations

from zmq_offload.common.lifetime import tell_of_forks
from zmq_offload.errors import FailedPrecondition
from zmq_offload.runtime.destructors import drop_destructors
from zmq_offload.runtime.threads import pool_threads

_LIBRARY = b"libtvm_runtime"


class _Threads:
    """Whether TVM can run here."""

    def __init__(self) -> None:
        self._used = self.lost = False
        tell_of_forks(self)

    def forget(self) -> None:
        self.lost |= self._used and pool_threads() > 1
        if self._used:
            drop_destructors(_LIBRARY)

    def use(self) -> None:
        """TVM is about to run. Raises FailedPrecondition where it cannot."""
        if self.lost or not self._used:
            self.check()
            pool_threads()  # cached now: a child must not ask
            self._used = True

    def check(self) -> None:
        """Raises FailedPrecondition in a child of a process that has run a model."""
        if self.lost:
            raise FailedPrecondition(
                "TVM ran in this process before it was forked, and its threads are not in the child: "
                "load and run models only after the fork, or start processes by spawn"
            )


THREADS = _Threads()
