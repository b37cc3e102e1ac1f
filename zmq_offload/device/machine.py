"""Virtual machines on one library, for any number of threads."""

from __future__ import annotations

import os
import platform
import weakref
from collections.abc import Callable, Mapping, Sequence

from zmq_offload.common.cores import cpu_quota, usable_cores
from zmq_offload.common.lifetime import tell_of_forks
from zmq_offload.device.remote import registered
from zmq_offload.device.turns import Turns
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import MAIN, Machine, release_memory
from zmq_offload.runtime.threads import pool_threads
from zmq_offload.runtime.tvm_library import tvm_ffi

# TVM binds the pool of each thread that runs a model, and the thread itself, to the first cores: concurrent runs would
# share a core, and whatever such a thread starts would inherit it.
os.environ.setdefault("TVM_BIND_THREADS", "0")

if not {"TVM_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys() and cpu_quota() is not None:
    # By default TVM takes half of an x86 machine's cores, since hyperthreads do not count, and ignores a CPU quota.
    _granted = len(os.sched_getaffinity(0))
    _own = _granted if platform.machine().lower() in ("aarch64", "arm64") else max(1, _granted // 2)
    os.environ["TVM_NUM_THREADS"] = str(min(usable_cores(), _own))


TURNS = Turns(max(1, usable_cores() // pool_threads()))
"""All models of this process take turns: they compute on the same cores, each run with all threads of a pool."""


_inherited: list[object] = []
"""VMs and libraries of the parent of this forked process. To drop them could wait for TVM's locks."""


class Machines:
    """Virtual machines on a library whose functions take `inputs`.

    One virtual machine serves one thread at a time. A run makes one if none is free, and keeps it for the next run.
    `functions` are what the library's symbols call (see `remote.registered`). When this object is dropped, its memory
    goes back to the system and the library is unloaded. Results that are still held stay valid.
    """

    def __init__(
        self,
        library: tvm_ffi.Module,
        inputs: Sequence[TensorSpec],
        functions: Mapping[str, Callable[..., object]] | None = None,
    ) -> None:
        self._library = [library]  # a list, so that the finalizer has the only other reference
        self._inputs = inputs
        self._functions = functions or {}
        self._free: list[Machine] = []
        self._finalizer = weakref.finalize(self, _release, self._free, self._library)
        self._finalizer.atexit = False
        tell_of_forks(self)

    def run(self, arrays: Sequence[Array], entry: str = MAIN) -> list[Array]:
        """Run a function on arrays that fit the inputs. The arrays are copied; the results are the caller's.

        Raises FailedPrecondition in a forked child where TVM cannot run.
        """
        THREADS.use()
        try:
            machine = self._free.pop()  # atomic, as is append
        except IndexError:
            with registered(self._functions):
                machine = Machine(self._library[0], self._inputs, entry=entry, calls_back=bool(self._functions))
        try:
            if machine.entry != entry:
                machine.use(entry)
            return machine.run(arrays)
        finally:
            self._free.append(machine)

    def forget(self) -> None:
        """This process is a forked child: what the parent made stays as it is."""
        self._finalizer.detach()
        _inherited.append((list(self._free), self._library))


def _release(machines: list[Machine], library: list[tvm_ffi.Module]) -> None:
    machines.clear()
    library.clear()
    release_memory()
