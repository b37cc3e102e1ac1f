"""Whether this machine's CPU has the instruction sets that a library was built for.

On a CPU without AVX-512, a library that was built for it ends the process with an illegal instruction. So a build
records what its library needs, and the record is compared with the CPU before the library is loaded. Only instruction
sets that LLVM's code generator uses by itself count. A target such as znver4 also has features (protection keys,
mwaitx) that no generated code uses and that virtual machines often hide.
"""

from __future__ import annotations

import functools
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from zmq_offload.errors import FailedPrecondition

# LLVM's name -> Linux's. (llvm/lib/TargetParser/Host.cpp; arch/x86/include/asm/cpufeatures.h and
# arch/arm64/kernel/cpuinfo.c)
_X86 = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "lzcnt": "abm",
    "movbe": "movbe",
    "gfni": "gfni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxvnni": "avx_vnni",
    # AMD only; Zen dropped all but the first.
    "sse4a": "sse4a",
    "fma4": "fma4",
    "xop": "xop",
    "tbm": "tbm",
}
_ARM = {
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "rdm": "asimdrdm",
    "complxnum": "fcma",
    "sha3": "sha3",
    "lse": "atomics",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}
# Linux's name -> the word of the auxiliary vector and the bit there. (arch/arm64/include/uapi/asm/hwcap.h)
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_BITS = {
    "asimd": (_AT_HWCAP, 1),
    "atomics": (_AT_HWCAP, 8),
    "asimdhp": (_AT_HWCAP, 10),
    "asimdrdm": (_AT_HWCAP, 12),
    "fcma": (_AT_HWCAP, 14),
    "sha3": (_AT_HWCAP, 17),
    "asimddp": (_AT_HWCAP, 20),
    "sve": (_AT_HWCAP, 22),
    "asimdfhm": (_AT_HWCAP, 23),
    "sve2": (_AT_HWCAP2, 1),
    "i8mm": (_AT_HWCAP2, 13),
    "bf16": (_AT_HWCAP2, 14),
}
_LINUX = {"x86_64": _X86, "aarch64": _ARM}
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


class CpuNeeds(msgspec.Struct, frozen=True):
    """What a library needs of a CPU: an `architecture` (x86_64, aarch64, ...) and `features`, by LLVM's names."""

    architecture: str
    features: tuple[str, ...]

    @classmethod
    def of(cls, triple: str, llvm_features: Iterable[str]) -> CpuNeeds:
        """The needs of code for an LLVM triple and the features of its target."""
        architecture = triple.partition("-")[0].lower()
        architecture = _SAME.get(architecture, architecture)
        known = _LINUX.get(architecture, {})
        return cls(architecture, tuple(sorted(known.keys() & set(llvm_features))))

    def check(self, what: str) -> None:
        """Raises FailedPrecondition if this machine cannot run the library. The message calls the library `what`."""
        architecture, flags = this_cpu()
        if self.architecture != architecture:
            raise FailedPrecondition(
                f"{what} was built for {self.architecture}, this CPU is {architecture}; "
                "compile it for this one: a bundle with --device-target, a subgraph with --target"
            )
        if not flags:
            return  # not Linux, or no list of features: the library is tried
        linux = _LINUX.get(architecture, {})
        missing = [name for name in self.features if linux.get(name, name) not in flags]
        if missing:
            raise FailedPrecondition(
                f"{what} was built for a CPU with {', '.join(missing)}, which this one lacks; "
                "compile it for this one: a bundle with --device-target, a subgraph with --target"
            )

    def met(self) -> bool:
        """Whether this machine can run the library."""
        try:
            self.check("it")
        except FailedPrecondition:
            return False
        return True


@functools.cache  # a machine with many cores tells a lot
def this_cpu() -> tuple[str, frozenset[str]]:
    """This machine's architecture, and its features by Linux's names (empty if they are not known)."""
    machine = platform.machine().lower()
    architecture = _SAME.get(machine, machine)
    try:
        # The kernel's word to this process. Under qemu-user, /proc/cpuinfo is that of the machine below it.
        if architecture == "aarch64" and (flags := flags_of(Path("/proc/self/auxv").read_bytes())):
            return architecture, flags
        return architecture, flags_in(Path("/proc/cpuinfo").read_text())
    except OSError:
        return architecture, frozenset()


def flags_of(auxv: bytes) -> frozenset[str]:
    """The features of 64-bit ARM in an auxiliary vector."""
    whole = auxv[: len(auxv) // 16 * 16]
    words = dict(struct.iter_unpack("=QQ", whole))
    return frozenset(flag for flag, (word, bit) in _BITS.items() if words.get(word, 0) >> bit & 1)


def flags_in(cpuinfo: str) -> frozenset[str]:
    """The features that all processors of a /proc/cpuinfo have."""
    found = [
        set(value.split())
        for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())
        if key.strip() in ("flags", "Features")
    ]
    return frozenset(set.intersection(*found)) if found else frozenset()
