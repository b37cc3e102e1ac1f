"""Relax module -> shared library: the one place where TVM's compiler, and a linker, are called."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
from tvm.support import cc
from tvm.target import codegen

from zmq_offload.compile.bounds import clamp_indices
from zmq_offload.compile.fold import fold_constants
from zmq_offload.compile.interrupt import interruptible
from zmq_offload.compile.pipeline import cpu_pipeline
from zmq_offload.compile.tuning.database import tuned_or_none
from zmq_offload.errors import FailedPrecondition, Internal


def prepared(mod: tvm.IRModule) -> tvm.IRModule:
    """A module as the pipeline takes it: what is built, and so what is tuned."""
    return clamp_indices(fold_constants(mod))


def build(mod: tvm.IRModule, target: tvm.target.Target, tuning: Path | None = None) -> tvm.runtime.Executable:
    """Compile a module for a CPU, with what tuning left in the folder `tuning`. Raises Internal, with TVM's message, if
    TVM cannot."""
    try:
        with target, interruptible():
            first = tuned_or_none(tuning, target) if tuning is not None else None
            return tvm.compile(prepared(mod), target, relax_pipeline=cpu_pipeline(target, first))
    except FailedPrecondition:  # a damaged database is not TVM's fault
        raise
    except Exception as error:
        raise Internal(f"TVM cannot compile it: {' '.join(str(error).split())[:1000]}") from error


def export(executable: tvm.runtime.Executable, path: Path, target: tvm.target.Target) -> None:
    """Link an executable into a shared library. Raises FailedPrecondition if there is no linker, it fails, or the disk
    is full."""
    try:
        executable.export_library(str(path), fcompile=_linker(target))
    except Exception as error:
        if "No space left on device" in str(error):
            raise FailedPrecondition(
                f"{path.name} cannot be linked: no space left in {path.parent}, or in the folder for temporary files, "
                f"{tempfile.gettempdir()} ($TMPDIR chooses another)"
            ) from error
        raise FailedPrecondition(
            f"{path.name} cannot be linked for {_triple(target)} (that needs a C++ compiler for it: g++ or clang++, or "
            f"the one that $CXX names; or the package ziglang): {' '.join(str(error).split())[:500]}"
        ) from error


def _linker(target: tvm.target.Target) -> Callable[..., None] | None:
    """None for TVM's own choice, a C++ compiler; LLD where that is not there or is for another architecture.

    The PyPI package ziglang has LLD in it: it links for any architecture, where there is nothing but Python and pip.
    """
    native = _triple(target).split("-")[0] == str(codegen.llvm_get_system_triple()).split("-")[0]
    chosen = os.environ.get("CXX") or os.environ.get("CC")
    if chosen or (native and cc.get_cc()) or importlib.util.find_spec("ziglang") is None:
        return None
    return _link_with_lld


def _link_with_lld(output: str, objects: Sequence[str], **_: object) -> None:
    # Functions of libc and libm stay undefined in the library: every process that has TVM has them loaded.
    command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", output, *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


def _triple(target: tvm.target.Target) -> str:
    return str(target.attrs.get("mtriple") or codegen.llvm_get_system_triple())
