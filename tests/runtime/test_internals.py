"""What rests on internals of TVM and glibc. A test that fails here says that the library has changed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from zmq_offload.artifacts.repository import LIBRARY
from zmq_offload.compile import Compiled
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
import sys
import zmq_offload.runtime.machine, zmq_offload.runtime.gpu, zmq_offload.device.model, workers.executor, tvm_ffi
assert not {"tvm", "torch"} & sys.modules.keys(), "what only a compiler needs is imported"
maps = open("/proc/self/maps").read()
assert "libtvm_runtime" in maps and "libtvm_compiler" not in maps and "libtvm.so" not in maps, "the compiler is loaded"
assert tvm_ffi.get_global_func("tvm.contrib.sort.topk"), "sorting is missing: topk and NMS would fail"
"""

# A model that prints calls a function that TVM has in Python.
PRINTS_IN_AN_IMAGE = """
import sys
from zmq_offload.errors import FailedPrecondition
from zmq_offload.runtime.machine import Machine, load_library
library = load_library(sys.argv[1])
sys.modules["tvm.runtime"] = None  # as in a device image, which has TVM's libraries alone
try:
    Machine(library)
except FailedPrecondition as error:
    assert "debug_print" in error.message and "not in a device image" in error.message, error
else:
    raise AssertionError("nothing was missing")
"""

PRINTS = """
import sys
import numpy as np
from zmq_offload.runtime import tvm_library
from zmq_offload.runtime.machine import Machine, load_library
library, version = load_library(sys.argv[1]), tvm_library.version()
assert "tvm" not in sys.modules
(y,) = Machine(library).run([np.ones(4, "f4")])
assert y.tolist() == [2, 2, 2, 2]
assert version == sys.modules["tvm"].__version__ and "libtvm_compiler" in open("/proc/self/maps").read()
"""

WEIGHTS = """
import sys
from zmq_offload.artifacts.repository import loadable
from zmq_offload.runtime.mapped import forget_weights
from zmq_offload.runtime.machine import Machine, load_library
import numpy as np, pathlib

def resident(name):
    found, mine = 0, False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if not words[0].endswith(":"):
            mine = line.rstrip().endswith(name)
        elif mine and words[0] == "Rss:":
            found += int(words[1])
    return found

path = pathlib.Path(sys.argv[1])
library = load_library(path)
assert 0 < resident(str(path.resolve())) < 1000, "the weights are in memory twice"
(y,) = Machine(library).run([np.ones((1, 1448), "f4")])
assert forget_weights(loadable(path)) > 8_000_000
assert np.array_equal(Machine(library).run([np.ones((1, 1448), "f4")])[0], y)
assert forget_weights(str(path) + ".missing") == 0 and forget_weights("libm.so.6") == 0
"""


def run(program: str, *arguments: str, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
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


def test_tvms_runtime_is_loaded_alone_and_sorting_with_it() -> None:
    run(RUNTIME_ONLY)


def test_a_library_that_calls_tvms_python_gets_it(tmp_path: Path) -> None:
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        y = builder.emit(relax.op.add(x, x))
        builder.emit(
            relax.call_pure_packed("vm.builtin.debug_print", tvm.ir.StringImm("y"), y, ty_args=relax.TupleType([]))
        )
        builder.emit_func_output(y)
    tvm.compile(builder.get(), "llvm").export_library(str(tmp_path / "prints.so"))
    run(PRINTS, str(tmp_path / "prints.so"))
    run(PRINTS_IN_AN_IMAGE, str(tmp_path / "prints.so"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what of a mapped file is in memory")
def test_the_weights_of_a_library_are_in_memory_once(compiled_wide: Compiled) -> None:
    run(WEIGHTS, str(compiled_wide.subgraphs[0] / LIBRARY))


def test_what_the_user_decided_about_the_runtime_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime_only.VARIABLE, "0")
    runtime_only.use()
    assert os.environ[runtime_only.VARIABLE] == "0"
