"""GPU targets by name: cuda-sm80, cuda-sm86, cuda-sm89, cuda-sm90, and cuda-native, this machine's GPU."""

from __future__ import annotations

import tvm
from tvm.target import codegen

from zmq_offload.errors import FailedPrecondition, InvalidArgument

PREFIX = "cuda-"
NAMES = ("cuda-sm80", "cuda-sm86", "cuda-sm89", "cuda-sm90", "cuda-native")

_LIMITS = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 48 * 1024, "thread_warp_size": 32}
"""What a kernel of every one of them may use without asking the driver for more."""


def gpu_target(name: str) -> tvm.target.Target:
    """The target of a name.

    Raises InvalidArgument for a name that is not one of `NAMES`, and FailedPrecondition for cuda-native without a GPU.
    """
    if name not in NAMES:
        raise InvalidArgument(f"target {name!r} is not a GPU that is known; use {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    architecture = _native() if name == "cuda-native" else f"sm_{name.removeprefix('cuda-sm')}"
    # The host's part only starts kernels, so it is for any CPU of this architecture.
    host = {"kind": "llvm", "mtriple": str(codegen.llvm_get_system_triple())}
    return tvm.target.Target({"kind": "cuda", "arch": architecture, **_LIMITS, "host": host})


def _native() -> str:
    gpu = tvm.cuda(0)
    if not gpu.exist:
        raise FailedPrecondition(
            "target 'cuda-native': this machine has no GPU, or TVM cannot load libcuda.so.1 and libcudart.so.13; "
            f"name the workers' GPU: {', '.join(NAMES[:-1])}"
        )
    return f"sm_{gpu.compute_version.replace('.', '')}"


def is_gpu(target: tvm.target.Target) -> bool:
    return bool(target.kind.name == "cuda")
