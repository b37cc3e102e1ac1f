"""Object code -> shared library, also on a machine without a C++ compiler and for another machine than this.

A compiler that is there links for this machine ($CXX or $CC name one, also one for another architecture). Otherwise Zig
does, which PyPI has as the package `ziglang` (part of the `compile` extra): it brings a linker and the C library's
stubs for every common target, and builds those when it first links for one (some seconds, then cached).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.support import cc
from tvm.target import codegen

from zmq_offload.errors import FailedPrecondition


def link(executable: tvm.runtime.Executable, target: tvm.target.Target, path: Path) -> None:
    """Write `executable`, which was built for `target`, as a shared library.

    Raises FailedPrecondition if there is nothing to link it with, or that fails.
    """
    command = linker(str(target.attrs.get("mtriple") or codegen.llvm_get_system_triple()))

    def run(output: str, objects: Sequence[str], **_: Any) -> None:
        done = subprocess.run(
            [*command, "-shared", "-fPIC", "-o", output, *objects], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FailedPrecondition(
                f"{' '.join(command)} cannot link {path.name}: {' '.join(done.stderr.split())[:800]}"
            )

    try:
        executable.export_library(str(path), fcompile=run)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be linked by {command[0]}: {error}") from None


def linker(triple: str) -> list[str]:
    """The command that links for an LLVM triple. Raises FailedPrecondition where there is none."""
    architecture = triple.partition("-")[0]
    here = architecture == platform.machine()
    named = os.environ.get("CXX") or os.environ.get("CC")
    if named:
        return named.split()
    found = cc.get_cc() if here else None
    if found:
        return [str(found)]
    if importlib.util.find_spec("ziglang") is not None:
        system = "macos" if "darwin" in triple or "apple" in triple else "linux-gnu"
        # Zig instruments by default; built without, its run-time libraries are there in a fifth of the time.
        plain = [sys.executable, "-m", "ziglang", "cc", "-O2", "-fno-sanitize=all"]
        return plain if here else [*plain, "-target", f"{architecture}-{system}"]
    raise FailedPrecondition(
        f"a linker for {triple} is needed: install one by pip install ziglang, or name a C++ compiler for it by $CXX"
    )
