"""What rests on internals of TVM and glibc. A test that fails here says that the library has changed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from zmq_offload.runtime import runtime_only

THREADS = """
import os
from zmq_offload.runtime.threads import Affinity, bind_pool, configure_pool
cores = sorted(os.sched_getaffinity(0))[:2]
known = set(os.listdir("/proc/self/task"))
bind_pool(len(cores), cores)
found = [os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task") if t not in known]
assert len(found) == len(cores) - 1 and all(len(own) == 1 and own <= set(cores) for own in found), found
import tvm
configure_pool(Affinity.BIG_CORES, 1)
assert tvm.runtime.num_threads() == 1
configure_pool(Affinity.BIG_CORES, len(cores))
assert tvm.runtime.num_threads() == len(cores)
"""

DESTRUCTORS = """
import threading
from zmq_offload.runtime.destructors import drop_destructors
from zmq_offload.runtime.threads import Affinity, configure_pool
found = []
def look():
    found.append(drop_destructors(b"libtvm_runtime"))
    configure_pool(Affinity.BIG_CORES, 2)  # TVM makes the pool of this thread
    found.append(drop_destructors(b"a library that nobody has"))
    found.append(drop_destructors(b"libtvm_runtime"))
    found.append(drop_destructors(b"libtvm_runtime"))
for run in (look, lambda: None):
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
assert found == [0, 0, 1, 0], found
"""

RUNTIME_ONLY = """
from zmq_offload.runtime import runtime_only
runtime_only.use()
import zmq_offload.runtime.machine, tvm_ffi
maps = open("/proc/self/maps").read()
assert "libtvm_runtime" in maps and "libtvm_compiler" not in maps and "libtvm.so" not in maps, "the compiler is loaded"
assert tvm_ffi.get_global_func("tvm.contrib.sort.topk"), "sorting is missing: topk and NMS would fail"
"""


def run(program: str, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tvm_knows_the_affinity_modes_by_these_numbers() -> None:
    run(THREADS, TVM_BIND_THREADS="1")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc has no such list")
def test_glibc_keeps_destructors_where_they_are_looked_for() -> None:
    run(DESTRUCTORS)


def test_tvm_loads_its_runtime_alone_and_sorting_with_it() -> None:
    run(RUNTIME_ONLY)


def test_what_the_user_decided_about_the_runtime_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime_only.VARIABLE, "0")
    runtime_only.use()
    assert os.environ[runtime_only.VARIABLE] == "0"
