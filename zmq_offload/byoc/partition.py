"""Mark regions of a Relax module by patterns, as TVM's own BYOC backends do."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from zmq_offload.byoc.codegen import CODEGEN, offloaded_functions
from zmq_offload.errors import InvalidArgument


def partition_for_zmq_offload(
    mod: tvm.IRModule, patterns: Sequence[relax.transform.FusionPattern | tuple[object, ...]]
) -> tvm.IRModule:
    """Mark the operators that patterns match as regions to offload.

    Adjacent matches are merged into one region, so that a run of matched operators costs one request.

    Parameters
    ----------
    mod : tvm.IRModule
        A module with a Relax function `main`. Constants go with the operators that use them; bind weights first, with
        `relax.transform.BindParams`.
    patterns : sequence of relax.transform.FusionPattern or tuple
        As `relax.transform.FuseOpsByPattern` takes them, with names that begin with "zmq_offload.".

    Returns
    -------
    tvm.IRModule
        A module for `zmq_offload.compile.compile_module`: `main` calls each region as one function.

    Raises
    ------
    InvalidArgument
        A pattern has another name, no pattern matches, the module has no `main`, or TVM cannot merge the matches: it
        takes flat tuples of tensors only.

    Examples
    --------
    >>> from tvm.relax.dpl import is_op, wildcard
    >>> from zmq_offload.compile import compile_module, partition_for_zmq_offload
    >>> matmul = ("zmq_offload.matmul", is_op("relax.matmul")(wildcard(), wildcard()))
    >>> compile_module(partition_for_zmq_offload(mod, [matmul]), name="m", output="dist")  # doctest: +SKIP
    """
    fusion = [
        p if isinstance(p, relax.transform.FusionPattern) else relax.transform.FusionPattern(*p) for p in patterns
    ]
    for pattern in fusion:
        if not str(pattern.name).startswith(f"{CODEGEN}."):
            raise InvalidArgument(f"pattern {str(pattern.name)!r} is not ours; its name must begin with '{CODEGEN}.'")
    if not any(gv.name_hint == "main" for gv in mod.get_global_vars()):
        raise InvalidArgument("the module has no function 'main'; name the one to partition 'main'")
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
        raise InvalidArgument(f"nothing in the module's 'main' matches {names}; one match is needed")
    return partitioned
