"""The compilation pipeline for GPUs: fusion as for CPUs, the schedules of `rules`, and TVM's own passes around them."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import Pass, PassContext, Sequential, module_pass
from tvm.relax.backend.cuda import pipeline as tvm_pipeline
from tvm.target import Target

from zmq_offload.byoc.unequal import isolate_unequal
from zmq_offload.compile.cuda.growth import isolate_growth
from zmq_offload.compile.cuda.rules import scheduled
from zmq_offload.compile.definitions import definitions_first
from zmq_offload.compile.empty import without_empty_constants
from zmq_offload.schedules.identities import with_identities
from zmq_offload.schedules.reshapes import annotated, legalized
from zmq_offload.schedules.scales import fold_scales
from zmq_offload.schedules.simplify import simplify

GRAPHS = "relax.backend.use_cuda_graph"
"""TVM's option to record the kernels of a run, and to start them as one from the second run on."""


def gpu_pipeline(target: Target) -> Pass:
    """The whole pipeline, for `tvm.compile(mod, target, relax_pipeline=...)`."""
    steps = [
        *graph_passes(target),
        _plain(lambda mod: scheduled(mod, target), "gpu_schedules"),
        *tvm_pipeline.dataflow_lower_passes(target),
        _plain(without_empty_constants, "without_empty"),
        *tvm_pipeline.finalize_passes(target),
    ]

    def pipeline(mod: IRModule, _: PassContext) -> IRModule:
        with target:
            return Sequential(steps)(mod)

    return module_pass(pipeline, opt_level=0, name="zmq_offload.gpu_pipeline")


def graph_passes(target: Target) -> list[Pass]:
    """Passes from operators to fused functions, which are not scheduled yet."""
    clean = relax.transform.DeadCodeElimination
    return [
        relax.transform.Normalize(),
        _plain(simplify, "simplify"),
        clean(),
        _plain(fold_scales, "fold_scales"),
        clean(),
        _plain(simplify, "simplify"),
        clean(),
        relax.transform.CanonicalizeBindings(),
        *tvm_pipeline.library_dispatch_passes(target),
        relax.transform.LegalizeOps({"relax.reshape": legalized}),
        _plain(with_identities, "with_identities"),
        _plain(annotated, "annotated"),
        relax.transform.FoldConstant(),
        _plain(isolate_unequal, "isolate_unequal"),
        _plain(isolate_growth, "isolate_growth"),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        _plain(definitions_first, "definitions_first"),
        # Before scheduling, which removes the functions' blocks.
        relax.transform.RewriteDataflowReshape(),
        clean(),
    ]


def _plain(function: Callable[[IRModule], IRModule], name: str) -> Pass:
    """Make a pass from a function of the module."""
    return module_pass(lambda mod, _: function(mod), opt_level=0, name=f"zmq_offload.{name}")
