"""Run kernels for GPUs on this CPU: the CUDA C++ that a GPU would get is compiled with `gpu_on_cpu.h` in CUDA's place.

It shows that kernels compute the right values, that they have the barriers that they need, and that they stay inside
their buffers. It shows nothing of speed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tvm.support import cc

from tests.support.gpu_kernels import Kernels

_HEADER = Path(__file__).with_suffix(".h")
_GUARD = 64
"""Elements around each buffer that a kernel must not use: NaN, or the largest integer."""

_CALLS = """
template <typename... A, size_t... I> static void spread_(void (*f)(A...), void **a, std::index_sequence<I...>) {
  f((A)a[I]...);
}
template <typename... A> static void all_(void (*f)(A...), void **a) {
  spread_(f, a, std::index_sequence_for<A...>());
}
"""


def run_on_cpu(kernels: Kernels, inputs: Sequence[np.ndarray], *, reverse: bool = False) -> list[np.ndarray]:
    """Run a function's kernels. Returns the buffers of all its parameters: the inputs, then the outputs.

    `reverse` runs the last thread of a block first. Raises AssertionError if a kernel writes beside a buffer.
    """
    library = _compiled(kernels.source, tuple(launch.kernel for launch in kernels.launches))
    guarded, views = {}, {}
    for number, (name, shape, dtype) in enumerate((*kernels.parameters, *kernels.temporaries)):
        size = int(np.prod(shape, dtype=np.int64))
        kind = np.dtype(dtype)
        odd = np.nan if kind.kind == "f" else True if kind.kind == "b" else np.iinfo(kind).max // 2
        guarded[name] = np.full(size + 2 * _GUARD, odd, kind)
        views[name] = guarded[name][_GUARD : _GUARD + size].reshape(shape)
        if number < len(inputs):
            views[name][...] = inputs[number]
    before = {name: array.copy() for name, array in guarded.items()}
    for launch in kernels.launches:
        pointers = (ctypes.c_void_p * len(launch.arguments))(*(views[name].ctypes.data for name in launch.arguments))
        sizes = (ctypes.c_int * 6)(*launch.grid, *launch.block)
        assert getattr(library, f"run_{launch.kernel}")(pointers, sizes, int(reverse)) == 0
    for name, array in guarded.items():
        for end in (slice(_GUARD), slice(-_GUARD, None)):
            np.testing.assert_array_equal(array[end], before[name][end], err_msg=f"written beside {name}")
    return [views[name] for name, _, _ in kernels.parameters]


@functools.cache
def _compiled(source: str, names: tuple[str, ...]) -> ctypes.CDLL:
    code = source[source.index('extern "C" __global__') :]
    code = re.sub(
        r"^(\s*)__shared__ (alignas\(\d+\)) (\S+) (\w+)(\[\d+\]);$",
        r"\1\2 static \3 \4\5; if (first_) memset((void *)\4, 0xff, sizeof(\4));",
        code,
        flags=re.MULTILINE,
    )
    code = re.sub(r"extern __shared__ .*?(\w+)\[\];", r"alignas(1024) static uchar \1[98304];", code)
    runs = [
        f'extern "C" int run_{n}(void **a, int *d, int reverse) {{ return launch_([](void **b) {{ all_({n}, b); }}, a, '
        "{d[0], d[1], d[2]}, {d[3], d[4], d[5]}, reverse); }"
        for n in dict.fromkeys(names)
    ]
    text = "\n".join([f'#include "{_HEADER}"', "#include <utility>", code, _CALLS, *runs])
    folder = Path(tempfile.gettempdir()) / "zmq-offload-gpu-on-cpu"
    folder.mkdir(exist_ok=True)
    stem = hashlib.sha256((text + _HEADER.read_text()).encode()).hexdigest()[:24]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / f"{stem}.cpp"
        file.write_text(text)
        compiler = [cc.get_cc()] if cc.get_cc() else [sys.executable, "-m", "ziglang", "c++"]
        options = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"]
        done = subprocess.run(
            [*compiler, *options, "-o", str(file.with_suffix(".so")), str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr[:3000]}"
        return ctypes.CDLL(str(file.with_suffix(".so")))
