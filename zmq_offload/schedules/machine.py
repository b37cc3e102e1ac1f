"""The machine model of the rules: vector width, vector registers, threads, and two cache sizes.

It comes from the target's instruction-set features, never from CPU names, so that CPUs unknown today fit as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import tvm
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features

# Bytes of L2 that a task may fill with data that it reads more than once: half of the smallest L2 of current server and
# edge cores (512 KiB: Zen, Neoverse N1; four Cortex-A72 share 1 MiB or more).
CACHE_BYTES = 256 * 1024
# The same for L1, which has 32 KiB or more everywhere.
L1_BYTES = 16 * 1024


@dataclass(frozen=True)
class Machine:
    """The properties of a CPU that decide the sizes of tiles and tasks.

    Parameters
    ----------
    lanes : int
        Number of float32 values in a vector register, a power of two.
    registers : int
        Number of architectural vector registers.
    threads : int
        Number of threads that share a parallel loop.
    converts_float16 : bool
        Whether one instruction converts a vector of float16 to float32, so that weights can stay float16.
    integers : str
        The instruction that sums products of 8-bit integers: "vpdpbusd", "pmaddwd", "usdot", "sdot" or "smull"; "widen"
        if there is none. `dot_product` explains them.
    permutes_bytes : bool
        Whether one instruction looks up 64 bytes in a table of 128 (AVX-512 VBMI).
    scales : bool
        Whether one instruction multiplies by 2^n, with denormals, 0 and infinity at the ends (AVX-512).
    lane_factors : bool
        Whether a multiply-add takes one lane of a vector as the factor of all lanes (NEON on AArch64), so that one load
        serves as many steps of a sum as a vector has lanes.

    Examples
    --------
    >>> Machine(lanes=8, registers=16, threads=4).widths
    (8, 4, 2, 1)
    """

    lanes: int
    registers: int
    threads: int
    converts_float16: bool = field(default=False, repr=False)
    integers: str = "widen"
    permutes_bytes: bool = field(default=False, repr=False)
    scales: bool = field(default=False, repr=False)
    lane_factors: bool = field(default=False, repr=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """Usable vector widths in float32 values, widest first: the full width, its halves, down to a scalar."""
        width, widths = self.lanes, []
        while width:
            widths.append(width)
            width //= 2
        return tuple(widths)


def machine_of(target: Target) -> Machine:
    """Derive the machine model from a target.

    The features AVX-512F, AVX or AVX2, and NEON decide the vectors; any other target gets four lanes and 16 registers.
    AVX-512 VNNI, AVX-VNNI, i8mm and dotprod decide the products of 8-bit integers; without them, 16-bit ones do.
    `num-cores` of the target is the number of threads; 4 if the target does not say.

    Parameters
    ----------
    target : tvm.target.Target
        A target of kind "llvm".

    Returns
    -------
    Machine

    Examples
    --------
    >>> import tvm
    >>> machine_of(tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}))
    Machine(lanes=4, registers=32, threads=4, integers='smull')
    """
    features = set(map(str, llvm_get_cpu_features(target))) if target.kind.name == "llvm" else set()
    cores = int(target.attrs.get("num-cores", 0)) or 4
    aarch64 = "aarch64" in str(target.attrs.get("mtriple", ""))
    half = bool(features & {"avx512f", "f16c"}) or aarch64
    if "avx512f" in features:
        least = "pmaddwd" if "avx512bw" in features else "widen"
        products = "vpdpbusd" if {"avx512vnni", "avx512vl"} <= features else least
        return Machine(16, 32, cores, half, products, "avx512vbmi" in features, "avx512vl" in features)
    if "avx2" in features or "avx" in features:
        least = "pmaddwd" if "avx2" in features else "widen"
        return Machine(8, 16, cores, half, "vpdpbusd" if "avxvnni" in features else least)
    if "neon" in features or aarch64:
        kinds = (("i8mm", "usdot"), ("dotprod", "sdot"), ("neon", "smull"))
        products = next((kind for feature, kind in kinds if feature in features and aarch64), "widen")
        return Machine(4, 32, cores, half, products, lane_factors=aarch64)
    # SSE2, or unknown
    return Machine(4, 16, cores, False, "pmaddwd" if "sse2" in features else "widen")


def is_cpu(target: Target) -> bool:
    """Return whether LLVM compiles `target` for a CPU; the rules here know nothing else."""
    return bool(target.kind.name == "llvm" and target.get_target_device_type() == tvm.cpu().dlpack_device_type())
