"""The compilation pipeline for CPUs: layout, fusion, schedules; TVM's own passes before and after."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import Pass, PassContext, Sequential, module_pass
from tvm.target import Target

from zmq_offload.byoc.overlap import isolate_joins, overlap
from zmq_offload.schedules.exact import exact
from zmq_offload.schedules.layout import channels_last
from zmq_offload.schedules.machine import Machine, is_cpu, machine_of
from zmq_offload.schedules.schedule import Rule, schedule_pass
from zmq_offload.schedules.simplify import simplify


def _plain(function: Callable[[IRModule], IRModule], name: str) -> Pass:
    """A pass that needs nothing but the module."""
    return module_pass(lambda mod, _: function(mod), opt_level=0, name=name)


def graph_passes(machine: Machine) -> list[Pass]:
    """From operators to fused functions that are not scheduled yet: what tuning starts from."""

    def layout(mod: IRModule, _: PassContext) -> IRModule:
        return exact(channels_last(simplify(mod), machine))

    return [
        relax.transform.Normalize(),
        module_pass(layout, opt_level=0, name="zmq_offload.layout"),
        relax.transform.DeadCodeElimination(),
        relax.transform.CanonicalizeBindings(),
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        _plain(isolate_joins, "zmq_offload.isolate_joins"),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        # Reads the functions' blocks, which scheduling removes.
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
        _plain(overlap, "zmq_offload.overlap"),
    ]


def lowering_passes() -> list[Pass]:
    """From scheduled functions to what the virtual machine runs."""
    return [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def fusing(target: Target) -> list[Pass]:
    """`graph_passes` for a target."""
    if not is_cpu(target):
        raise ValueError(f"the CPU schedules are for LLVM targets, not for {target.kind.name}")
    return graph_passes(machine_of(target))


def cpu_pipeline(target: Target | str, first: Rule | None = None) -> Pass:
    """The `relax_pipeline` for `tvm.compile(mod, target, relax_pipeline=...)`.

    It needs no tuning; `first` is what tuning found (`zmq_offload.compile.tuning.database.tuned_or_none`).
    """
    target = Target(target) if isinstance(target, str) else target
    steps = [*fusing(target), schedule_pass(machine_of(target), first), *lowering_passes()]

    def pipeline(mod: IRModule, _: PassContext) -> IRModule:
        with target:
            return Sequential(steps)(mod)

    return module_pass(pipeline, opt_level=0, name="zmq_offload.cpu_pipeline")
