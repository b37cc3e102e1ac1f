"""Choose what is offloaded by BYOC patterns, as TVM's own backends do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from zmq_offload.byoc.codegen import CODEGEN, offloaded_functions
from zmq_offload.errors import InvalidArgument


def partition_for_zmq_offload(mod: tvm.IRModule, patterns: Sequence[Any]) -> tvm.IRModule:
    """Group what the patterns match into functions that run on the workers.

    `patterns` are those of `relax.transform.FuseOpsByPattern`: FusionPattern objects or tuples (name, pattern, ...),
    named "zmq_offload.<what it matches>". Matches that touch are merged into one function, so that a run of matched
    operators costs one remote call. Weights that are constants in `mod` go with the operators that use them (bind
    parameters first, with `relax.transform.BindParams`).

    Returns a module for `zmq_offload.compile.compile_module`. Raises InvalidArgument for a pattern of another name,
    if nothing matches, or if TVM cannot merge the matches (it takes flat tuples of tensors only).
    """
    fusion = [
        p if isinstance(p, relax.transform.FusionPattern) else relax.transform.FusionPattern(*p) for p in patterns
    ]
    for pattern in fusion:
        if not str(pattern.name).startswith(f"{CODEGEN}."):
            raise InvalidArgument(f"pattern {str(pattern.name)!r}: its name must begin with '{CODEGEN}.'")
    if not any(gv.name_hint == "main" for gv in mod.get_global_vars()):
        raise InvalidArgument("the module has no function 'main'")
    steps = tvm.transform.Sequential(
        [
            # Patterns match inside dataflow blocks only.
            relax.transform.ConvertToDataflow(min_size=1),
            relax.transform.CanonicalizeBindings(),
            relax.transform.FuseOpsByPattern(fusion, bind_constants=True, annotate_codegen=False),
            relax.transform.MergeCompositeFunctions(),
        ]
    )
    try:
        partitioned = steps(mod)
    except (tvm.error.InternalError, ValueError, TypeError) as error:
        raise InvalidArgument(f"TVM cannot merge what the patterns match: {' '.join(str(error).split())}") from error
    if not offloaded_functions(partitioned):
        names = ", ".join(str(p.name) for p in fusion) or "no patterns"
        raise InvalidArgument(f"nothing in the module's 'main' matches {names}")
    return partitioned
