"""Targets by the names of boards and of levels of CPUs. No TVM in here.

The names of CPUs are LLVM's (llvm/lib/Target/AArch64/AArch64Processors.td, llvm/lib/Target/X86/X86.td). A test compares
the features below with what LLVM knows of them.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass

_ARMV8_2 = ("neon", "fullfp16", "dotprod")
_LINUX_ARM = "aarch64-linux-gnu"
_LINUX_X86 = "x86_64-linux-gnu"
HOST = "host"
"""The name of this machine's CPU as a target."""


@dataclass(frozen=True)
class Board:
    """A machine that a target can name.

    `cpu` is LLVM's name of its CPU, `features` those of LLVM's features that decide how fast a network runs, and
    `cores` how many cores compute. Where models of the machine differ in that, it is None, and schedules are for four.
    """

    name: str
    title: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    cores: int | None = None

    def as_json(self) -> dict[str, object]:
        """The target as TVM takes it."""
        cores = {} if self.cores is None else {"num-cores": self.cores}
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, **cores}


BOARDS = {
    board.name: board
    for board in (
        # BCM2711: four Cortex-A72, Armv8.0. (Arm's Technical Reference Manual 100095, "Supported standards")
        Board("raspberry-pi-4", "Raspberry Pi 4, 400, CM4", _LINUX_ARM, "cortex-a72", ("neon",), 4),
        # BCM2712: four Cortex-A76, Armv8.2 with FEAT_FP16 and FEAT_DotProd. (TRM 100798)
        Board("raspberry-pi-5", "Raspberry Pi 5, 500, CM5", _LINUX_ARM, "cortex-a76", _ARMV8_2, 4),
        # Six (Nano, NX of 8 GB), eight (NX of 16 GB, AGX of 32 GB) or twelve (AGX of 64 GB) Cortex-A78AE. (TRM 101779;
        # Nvidia's data sheets of the modules)
        Board("jetson-orin-cpu", "Jetson Orin: its CPU", _LINUX_ARM, "cortex-a78ae", _ARMV8_2, 6),
        # Four Cortex-A76 and four Cortex-A55 with the same features (TRM 100442). TVM's threads take the fast ones.
        Board("rk3588", "Rockchip RK3588, RK3588S", _LINUX_ARM, "cortex-a76", _ARMV8_2, 4),
        # Neoverse V1: Armv8.4 with FEAT_I8MM, FEAT_BF16 and SVE of 256 bits. (TRM 101427)
        Board(
            "graviton3",
            "AWS Graviton3 (c7g, m7g, r7g)",
            _LINUX_ARM,
            "neoverse-v1",
            (*_ARMV8_2, "i8mm", "bf16", "sve"),
        ),
        # What all of them have: the M1's features. FEAT_I8MM and FEAT_BF16 came with the M2. Four fast cores at least.
        Board("apple-m", "Apple M1 and later", "aarch64-apple-macos11", "apple-m1", _ARMV8_2, 4),
        # The levels of the x86-64 psABI (https://gitlab.com/x86-psABIs/x86-64-ABI, "Micro-Architecture Levels").
        # Intel's CPUs for PCs have no AVX-512 from Alder Lake on.
        Board("x86-64-v2", "Nehalem, Bulldozer, Silvermont and later", _LINUX_X86, "x86-64-v2", ("sse4.2",)),
        Board("x86-64-v3", "Haswell, Zen and later", _LINUX_X86, "x86-64-v3", ("avx2", "fma", "f16c")),
        Board(
            "x86-64-v4",
            "Zen 4 and later, Intel's with AVX-512",
            _LINUX_X86,
            "x86-64-v4",
            ("avx512f", "avx512bw", "avx512vl"),
        ),
    )
}
NAMES = (HOST, *BOARDS)

_LIST_OPTIONS = ("mattr", "keys", "libs")


def old_target_as_json(text: str) -> str | None:
    """The JSON of a target in TVM's old language, such as "llvm -mtriple=... -mcpu=..."; None for other text."""
    kind, *words = text.split()
    options = [re.fullmatch(r"--?([a-z][\w-]*)=(.+)", word) for word in words]
    if not options or not all(options):
        return None
    found: dict[str, object] = {"kind": kind}
    for name, value in (option.groups() for option in options if option is not None):
        if name in _LIST_OPTIONS:
            found[name] = value.split(",")
        elif name != "device":  # it chose TVM's old schedules
            found[name] = int(value) if value.isdecimal() else value
    return json.dumps(found)


def closest(name: str) -> list[str]:
    """The names that a misspelled one may stand for, the nearest first."""
    plain = {_letters(known): known for known in NAMES}
    return [plain[near] for near in difflib.get_close_matches(_letters(name), plain, n=3, cutoff=0.6)]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
