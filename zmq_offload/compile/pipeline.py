"""The compilation pipeline for CPUs: layout, fusion and schedules, between TVM's own passes."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import Pass, PassContext, Sequential, module_pass
from tvm.target import Target

from zmq_offload.byoc.overlap import isolate_joins, overlap
from zmq_offload.byoc.unequal import isolate_unequal
from zmq_offload.compile.arguments import with_checks
from zmq_offload.compile.definitions import definitions_first
from zmq_offload.compile.empty import without_empty_constants
from zmq_offload.compile.shared_shapes import share_shapes
from zmq_offload.schedules.exact import exact
from zmq_offload.schedules.identities import with_identities
from zmq_offload.schedules.layout import channels_last
from zmq_offload.schedules.machine import Machine, is_cpu, machine_of
from zmq_offload.schedules.reshapes import annotated, legalized
from zmq_offload.schedules.scales import fold_scales
from zmq_offload.schedules.schedule import Rule, schedule_pass
from zmq_offload.schedules.simplify import simplify


def _plain(function: Callable[[IRModule], IRModule], name: str) -> Pass:
    """Make a pass from a function of the module."""
    return module_pass(lambda mod, _: function(mod), opt_level=0, name=name)


def graph_passes(machine: Machine) -> list[Pass]:
    """Passes from operators to fused functions, which are not scheduled yet. Tuning starts from these functions."""

    def layout(mod: IRModule, _: PassContext) -> IRModule:
        # What `simplify` replaced is still there, and would count as another reader of a convolution.
        simple = relax.transform.DeadCodeElimination()(simplify(mod))
        return exact(channels_last(relax.transform.DeadCodeElimination()(fold_scales(simple)), machine), machine)

    return [
        relax.transform.Normalize(),
        module_pass(layout, opt_level=0, name="zmq_offload.layout"),
        relax.transform.DeadCodeElimination(),
        relax.transform.CanonicalizeBindings(),
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps({"relax.reshape": legalized}),
        _plain(with_identities, "zmq_offload.with_identities"),
        _plain(annotated, "zmq_offload.annotated"),
        relax.transform.FoldConstant(),
        _plain(isolate_joins, "zmq_offload.isolate_joins"),
        _plain(isolate_unequal, "zmq_offload.isolate_unequal"),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        _plain(definitions_first, "zmq_offload.definitions_first"),
        # Before scheduling, which removes the functions' blocks.
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
        _plain(overlap, "zmq_offload.overlap"),
    ]


def lowering_passes() -> list[Pass]:
    """Passes from scheduled functions to code for the Relax virtual machine."""
    return [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        _plain(without_empty_constants, "zmq_offload.without_empty_constants"),
        _plain(with_checks, "zmq_offload.with_checks"),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        _plain(share_shapes, "zmq_offload.share_shapes"),
        relax.transform.AttachGlobalSymbol(),
    ]


def fusing(target: Target) -> list[Pass]:
    """`graph_passes` for a target. Raises ValueError if it is not a CPU."""
    if not is_cpu(target):
        raise ValueError(f"target {target} is not a CPU; use kind llvm")
    return graph_passes(machine_of(target))


def cpu_pipeline(target: Target | str, first: Rule | None = None) -> Pass:
    """The whole pipeline, for `tvm.compile(mod, target, relax_pipeline=...)`.

    `first` is a rule that is tried before the others, such as tuning results
    (`zmq_offload.compile.tuning.database.tuned_or_none`).
    """
    target = Target(target) if isinstance(target, str) else target
    steps = [*fusing(target), schedule_pass(machine_of(target), first), *lowering_passes()]

    def pipeline(mod: IRModule, _: PassContext) -> IRModule:
        with target:
            return Sequential(steps)(mod)

    return module_pass(pipeline, opt_level=0, name="zmq_offload.cpu_pipeline")
