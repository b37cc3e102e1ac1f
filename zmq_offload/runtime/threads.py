"""TVM's pool of threads: how many they are, and on which cores they run.

TVM keeps a pool for each thread that runs a model. `runtime.config_threadpool` configures the pool of the calling
thread. It takes a mode from an enum that TVM does not export.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from enum import IntEnum

from zmq_offload.runtime.tvm_library import tvm_ffi


class Affinity(IntEnum):
    """`tvm::runtime::threading::ThreadGroup::AffinityMode`."""

    BIG_CORES = 1
    """TVM chooses the cores: it begins with the fastest."""
    ONE_CORE_PER_THREAD = -2
    """Each thread has one of the given cores."""


def configure_pool(affinity: Affinity, threads: int, cores: Sequence[int] = ()) -> None:
    """Give the calling thread's pool this many threads, on these cores. The calling thread is one of them."""
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    if cores:
        configure(int(affinity), threads, [str(core) for core in cores])
    else:
        configure(int(affinity), threads)


def bind_pool(threads: int, cores: Sequence[int]) -> None:
    """Give each thread of the calling thread's pool one of these cores.

    By default TVM takes the host's first cores, even those that this process may not use. The calling thread works
    along with the pool and may run on any of the cores.
    """
    if threads > 1:
        configure_pool(Affinity.ONE_CORE_PER_THREAD, threads, cores)


@functools.cache
def pool_threads() -> int:
    """The number of threads that TVM computes with.

    To ask makes a pool for the thread that asks, and a child that is forked from this thread would wait for the pool.
    So a short-lived thread asks.
    """
    asked: list[int] = []
    thread = threading.Thread(target=lambda: asked.append(tvm_ffi.get_global_func("runtime.NumThreads")()))
    thread.start()
    thread.join()
    return asked[0]
