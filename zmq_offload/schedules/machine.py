"""What a schedule needs to know of the CPU: vector width, registers, threads. From features, never from names."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features

# A share of the L2 cache that a task may fill with data it reads more than once. 256 KiB is half of the smallest L2 of
# the server and edge cores in use (512 KiB: Zen, Neoverse N1; Cortex-A72 shares 1 MiB or more between four).
CACHE_BYTES = 256 * 1024
# The same for data that should stay in L1 (32 KiB and more everywhere): half of it.
L1_BYTES = 16 * 1024


@dataclass(frozen=True)
class Machine:
    """The few figures that choose tile sizes."""

    lanes: int  # float32 values in a vector register
    registers: int  # architectural vector registers
    threads: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Vector widths that can be used, widest first: the full one and its halves, down to a scalar."""
        width, widths = self.lanes, []
        while width:
            widths.append(width)
            width //= 2
        return tuple(widths)


def machine_of(target: Target) -> Machine:
    """The machine that `target` describes."""
    features = llvm_get_cpu_features(target) if target.kind.name == "llvm" else set()
    cores = int(target.attrs.get("num-cores", 0)) or 4
    if "avx512f" in features:
        return Machine(lanes=16, registers=32, threads=cores)
    if "avx2" in features or "avx" in features:
        return Machine(lanes=8, registers=16, threads=cores)
    if "neon" in features or "aarch64" in str(target.attrs.get("mtriple", "")):
        return Machine(lanes=4, registers=32, threads=cores)
    return Machine(lanes=4, registers=16, threads=cores)  # SSE2, or something unknown that has no wider vectors


def is_cpu(target: Target) -> bool:
    """Whether `target` is compiled by LLVM for a CPU, the only thing the rules here know."""
    return bool(target.kind.name == "llvm" and target.get_target_device_type() == tvm.cpu().dlpack_device_type())
