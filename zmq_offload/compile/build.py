"""Build a Relax module into a shared library. Only this module calls TVM's compiler and a linker."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
from tvm import relax
from tvm.ir.transform import Pass, PassContext, Sequential
from tvm.support import cc
from tvm.target import codegen

from zmq_offload.common.memory import trim
from zmq_offload.compile.bounds import clamp_indices
from zmq_offload.compile.cuda.names import is_gpu
from zmq_offload.compile.cuda.nvrtc import toolkit
from zmq_offload.compile.cuda.pipeline import GRAPHS, gpu_pipeline
from zmq_offload.compile.cuda.precision import Precision, half_products
from zmq_offload.compile.fold import fold_constants
from zmq_offload.compile.half import compute_in_float32
from zmq_offload.compile.interrupt import interruptible
from zmq_offload.compile.lowering import TIR_PIPELINE
from zmq_offload.compile.packing import packer
from zmq_offload.compile.parts import in_parts
from zmq_offload.compile.pipeline import cpu_pipeline
from zmq_offload.compile.quantization.qdq import integer_products
from zmq_offload.compile.target import triple_of
from zmq_offload.compile.tuning.database import tuned_or_none
from zmq_offload.errors import FailedPrecondition, Internal, InvalidArgument


def prepared(mod: tvm.IRModule) -> tvm.IRModule:
    """Prepare a module for the pipeline: for a build and for tuning alike, so that their functions are the same."""
    return clamp_indices(compute_in_float32(fold_constants(integer_products(mod))))


def build(mod: tvm.IRModule, target: tvm.target.Target, tuning: Path | None = None) -> tvm.runtime.Executable:
    """Compile a module for a CPU, with the tuning results in the folder `tuning`, to run it in this process.

    Raises InvalidArgument for an operator of a shape that only the run tells, or if TVM fails with symbolic extents,
    and Internal, with TVM's message, if TVM fails otherwise.
    """
    return _compiled(mod, target, tuning, [], [])


def build_library(
    mod: tvm.IRModule,
    path: Path,
    target: tvm.target.Target,
    tuning: Path | None = None,
    precision: Precision = "float32",
) -> None:
    """Compile a module into a shared library, as `build` and `export` do, in less memory.

    With the `precision` float16 products have operands of float16; on a CPU they are rounded to it, which gives the
    same values. Raises what `build` and `export` raise, and FailedPrecondition without NVRTC for a GPU.
    """
    if is_gpu(target):
        toolkit()  # now, since the rest takes long
        export(_compiled(mod, target, None, [], [], precision), path, target)
        return
    with tempfile.TemporaryDirectory(prefix="zmq-offload-") as folder:
        # The weights of another format are packed with LLVM's help, by the module that it compiled.
        failed: list[str] = []
        last = [in_parts(target, Path(folder), failed)] if packer(target) is not None else []
        executable = _compiled(mod, target, tuning, last, failed, precision)
        trim()
        export(executable, path, target)


def _compiled(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    tuning: Path | None,
    last: Sequence[Pass],
    failed: Sequence[str],
    precision: Precision = "float32",
) -> tvm.runtime.Executable:
    """The module after the pipeline and the passes `last`, as TVM compiles it. If it fails, `failed` has the names of
    functions that `last` found it to fail for."""
    try:
        with target, interruptible():
            ready = prepared(mod)
            if precision == "float16":
                ready = half_products(ready, emulated=not is_gpu(target))
            first = tuned_or_none(tuning, target) if tuning is not None else None
            if is_gpu(target):
                with PassContext(opt_level=3, config={GRAPHS: True}):
                    return tvm.compile(ready, target, relax_pipeline=gpu_pipeline(target))
            pipeline = Sequential([cpu_pipeline(target, first), *last])
            return tvm.compile(ready, target, relax_pipeline=pipeline, tir_pipeline=TIR_PIPELINE)
    except FailedPrecondition:  # a damaged database is not TVM's fault
        raise
    except Exception as error:
        if "only supports Tensor that has ShapeExpr shape" in str(error):
            raise InvalidArgument(
                "an operator cannot be compiled, because the shape of its input depends on the values of the model's "
                "inputs, as after NonMaxSuppression; export a model that ends before it"
            ) from error
        symbols = _symbols(mod)
        if symbols:
            operators = f"the operators {' and '.join(failed)}" if failed else "an operator of the model"
            raise InvalidArgument(
                f"TVM cannot compile {operators} with the symbolic extents {', '.join(symbols)}; give "
                "numbers in place of them, one after the other, to see which of them it is"
            ) from error
        where = " and ".join(failed) or "the module"
        raise Internal(f"TVM cannot compile {where}: {' '.join(str(error).split())[:1000]}") from error


def _symbols(mod: tvm.IRModule) -> list[str]:
    """The symbolic extents of a module's inputs."""
    functions = [f for f in mod.functions.values() if isinstance(f, relax.Function)]
    found = [s for f in functions for p in f.params for s in relax.analysis.tir_vars_in_type(p.ty)]
    return sorted({str(symbol.name) for symbol in found})


def export(executable: tvm.runtime.Executable, path: Path, target: tvm.target.Target) -> None:
    """Link an executable into a shared library.

    Raises FailedPrecondition if there is no linker, the linker fails, or the disk is full.
    """
    try:
        # Without debug information: it has names that TVM numbers, which tell how much was compiled before.
        executable.mod.export_library(
            str(path), fcompile=_linker(target), fpack_imports=packer(target), options=["-Wl,-S"]
        )
    except Exception as error:
        if "No space left on device" in str(error):
            raise FailedPrecondition(
                f"{path.name} cannot be linked: no space left in {path.parent}, or in the temporary folder "
                f"{tempfile.gettempdir()}; free some, or set $TMPDIR to another folder"
            ) from error
        raise FailedPrecondition(
            f"{path.name} cannot be linked for {triple_of(target)} (it needs a C++ compiler for it: g++, clang++ or "
            f"the one that $CXX names; or the package ziglang): {' '.join(str(error).split())[:500]}"
        ) from error


def _linker(target: tvm.target.Target) -> Callable[..., None] | None:
    """Choose a linker: None for TVM's default, a C++ compiler; LLD if there is none for the target's machine.

    LLD comes with the PyPI package ziglang. It links for any architecture and needs only Python and pip. The package
    has another linker for macOS.
    """
    here, there = str(codegen.llvm_get_system_triple()), triple_of(target)
    native = here.split("-")[0] == there.split("-")[0] and ("apple" in here) == ("apple" in there)
    chosen = os.environ.get("CXX") or os.environ.get("CC")
    if chosen or (native and cc.get_cc()) or importlib.util.find_spec("ziglang") is None:
        return None
    return _link_for_macos if "apple" in there else _link_with_lld


def _link_with_lld(output: str, objects: Sequence[str], **_: object) -> None:
    # Functions of libc and libm stay undefined in the library. Every process with TVM has them loaded.
    _link([sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-S", "-o", output, *objects])


def _link_for_macos(output: str, objects: Sequence[str], **_: object) -> None:
    undefined = "-Wl,-undefined,dynamic_lookup"
    target = ["-target", "aarch64-macos", "-shared", undefined]
    _link([sys.executable, "-m", "ziglang", "cc", *target, "-o", output, *objects])


def _link(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
