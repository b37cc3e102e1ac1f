"""Relax module -> shared library: the one place where TVM's compiler is called."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax

from zmq_offload.compile.bounds import clamp_indices
from zmq_offload.compile.fold import fold_constants
from zmq_offload.errors import FailedPrecondition, Internal


def build(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Compile a module for a CPU. Raises Internal, with TVM's message, if TVM cannot."""
    try:
        with target:
            # The pipeline that tvm.compile takes by default does not fuse operators; the CPU's own one does.
            return tvm.compile(
                clamp_indices(fold_constants(mod)), target, relax_pipeline=relax.get_default_pipeline(target)
            )
    except Exception as error:
        raise Internal(f"TVM cannot compile it: {' '.join(str(error).split())[:1000]}") from error


def export(executable: tvm.runtime.Executable, path: Path) -> None:
    """Link an executable into a shared library. Raises FailedPrecondition if there is no linker, or it fails."""
    try:
        executable.export_library(str(path))
    except Exception as error:
        raise FailedPrecondition(
            f"{path.name} cannot be linked (a C++ compiler for the target is needed, $CXX names it): "
            f"{' '.join(str(error).split())[:500]}"
        ) from error
