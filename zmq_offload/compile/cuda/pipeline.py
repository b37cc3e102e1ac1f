"""The compilation pipeline for GPUs: TVM's own passes, and the schedules of dlight.

A rule of dlight fails for some functions in place of passing them on, so each function is scheduled by itself, by the
first rule that succeeds.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.ir.transform import Pass, PassContext, Sequential, module_pass
from tvm.relax.backend.cuda import pipeline as tvm_pipeline
from tvm.target import Target

from zmq_offload.compile.empty import without_empty_constants

GRAPHS = "relax.backend.use_cuda_graph"
"""TVM's option to record the kernels of a run, and to start them as one from the second run on."""


def gpu_pipeline(target: Target) -> Pass:
    """The whole pipeline, for `tvm.compile(mod, target, relax_pipeline=...)`."""
    steps = [
        relax.transform.Normalize(),
        *tvm_pipeline.library_dispatch_passes(target),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        module_pass(lambda mod, _: _scheduled(mod, target), opt_level=0, name="zmq_offload.gpu_schedules"),
        *tvm_pipeline.dataflow_lower_passes(target),
        module_pass(lambda mod, _: without_empty_constants(mod), opt_level=0, name="zmq_offload.without_empty"),
        *tvm_pipeline.finalize_passes(target),
    ]

    def pipeline(mod: IRModule, _: PassContext) -> IRModule:
        with target:
            return Sequential(steps)(mod)

    return module_pass(pipeline, opt_level=0, name="zmq_offload.gpu_pipeline")


def _scheduled(mod: IRModule, target: Target) -> IRModule:
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    done = tvm.IRModule(mod.functions, attrs=mod.attrs, global_infos=mod.global_infos)
    for name, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc):
            done[name] = _first(function, rules, target)
    return done


def _first(function: tirx.PrimFunc, rules: tuple[object, ...], target: Target) -> tirx.PrimFunc:
    """The function as the first rule that takes it schedules it. Raises what the last rule raises."""
    from tvm.s_tir import dlight

    one = tvm.IRModule({"main": function})
    for rule in rules[:-1]:
        try:
            with target:
                found = dlight.ApplyDefaultSchedule(rule)(one)["main"]
        except Exception:
            continue
        if found.attrs is not None and found.attrs.get("tirx.is_scheduled"):
            return found
    with target:
        return dlight.ApplyDefaultSchedule(rules[-1])(one)["main"]
