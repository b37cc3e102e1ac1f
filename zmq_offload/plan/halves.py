"""Measures how long a model takes before and after each place where it can be cut.

Both parts of every cut are functions of one module. They have nearly all operators in common, which are scheduled and
compiled once, so building all parts takes little longer than building the network. Operators are fused and layouts
chosen as in a real split. (The sum of the pieces between neighboring cuts is wrong by a factor of two, because each
piece converts its layout back and forth.)
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tvm
from tvm import relax
from tvm.runtime import vm

from zmq_offload.artifacts.repository import checksum
from zmq_offload.byoc.carried import constant_bytes
from zmq_offload.byoc.codegen import tensor_spec
from zmq_offload.byoc.encoding import decode, encode, encoded_as, wire_types
from zmq_offload.compile.build import build, build_library
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.target import cpu_needs, host_target, resolve_target
from zmq_offload.console.progress import Say, counter, say_nothing
from zmq_offload.plan.costs import WIRES, Times
from zmq_offload.plan.cuttable import Cuttable, cuttable
from zmq_offload.plan.files import CutTimes, PlannedModel
from zmq_offload.plan.parts import Library, Parts, writing
from zmq_offload.plan.timing import Calls, calls_of, coder, thread_count, timed, times_of
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.forks import THREADS

_WEIGHTS = 256_000_000
"""The most bytes of weights in one module. Each part has a copy of its weights."""

_CARRIED = 1_000_000_000
"""As `_WEIGHTS`, of a library that is carried to another machine. It has each weight once, so fewer libraries are less
to carry, and more memory to compile."""


def measure_halves(
    model: Cuttable,
    target: tvm.target.Target,
    threads: Sequence[int],
    repeat: int,
    seconds: float = 30.0,
    say: Say = say_nothing,
) -> list[Times]:
    """The times on this machine, one result for each number of TVM threads.

    Each part runs `repeat` times, or fewer if `seconds` are over, but at least three times. Parts take turns, so that a
    disturbance affects all of them, and the medians count.
    """
    groups = _groups(model)
    taken: dict[int, dict[str, float]] = {many: {} for many in threads}
    tell = counter(say, "cuts")
    for at, group in enumerate(groups):
        tell(at * len(groups[0]), len(model.points) - 2)
        calls = _build(model, target, group, whole=at == 0)
        for many, found in taken.items():
            with thread_count(many, max(threads)):
                found |= timed(calls, repeat, seconds / len(groups) / len(taken))
    return [times_of(model.points, taken[many]) for many in threads]


def take_profile(
    file: Path, inputs: Mapping[str, Sequence[Dim]], threads: int, repeat: int, say: Say = say_nothing
) -> CutTimes:
    """The times of a model's parts on this machine, for a plan on another one. Raises as `cuttable` does."""
    model = cuttable(read_model(file).imported(inputs))
    target = host_target()
    (times,) = measure_halves(model, target, [threads], repeat, say=say)
    machine = f"{platform.node()} ({target.attrs.get('mcpu')})"
    return CutTimes(PlannedModel.of(file, model.imported.inputs), machine, threads, model.points, times)


def build_parts(
    file: Path, inputs: Mapping[str, Sequence[Dim]], given: str | None, folder: Path, say: Say = say_nothing
) -> None:
    """Compile a model's parts for another machine, which measures them with `parts.measure_parts`.

    `given` is the target. `folder` is made; its files have all weights of the model. Raises as `cuttable`,
    `resolve_target` and `build_library` do.
    """
    target = resolve_target(given)
    model = cuttable(read_model(file).imported(inputs))
    groups = _groups(model, _CARRIED)
    tell = counter(say, "libraries")
    with writing(folder) as made:
        libraries = []
        for at, group in enumerate(groups):
            tell(at, len(groups))
            mod, arguments = _module(model, group, whole=at == 0)
            path = made / f"parts{at}.so"
            build_library(mod, path, target)
            libraries.append(Library(path.name, checksum(path), arguments))
        planned = PlannedModel.of(file, model.imported.inputs)
        needs = cpu_needs(target)
        cpu = str(target.attrs.get("mcpu") or needs.architecture)
        Parts(planned, tvm.__version__, cpu, needs, model.points, tuple(libraries), given).write(made)


def _groups(model: Cuttable, most: int = _WEIGHTS) -> list[list[int]]:
    """The cuts, as many together as fit in one module with this many bytes. There is at least one group."""
    weights = sum(constant_bytes(b.value) for b in model.imported.graph.bindings)
    size = max(1, int(most // max(1, weights)))
    cuts = list(range(1, len(model.points) - 1))
    return [cuts[i : i + size] for i in range(0, len(cuts), size)] or [[]]


def _build(model: Cuttable, target: tvm.target.Target, cuts: Sequence[int], whole: bool) -> Calls:
    """Calls of the parts before and after some cuts, of the encodings there, and of the whole model."""
    mod, arguments = _module(model, cuts, whole)
    THREADS.use()
    machine = vm.VirtualMachine(build(mod, target), tvm.cpu())
    return calls_of(machine, arguments)


def _module(
    model: Cuttable, cuts: Sequence[int], whole: bool
) -> tuple[tvm.IRModule, dict[str, tuple[TensorSpec, ...]]]:
    """A module with the parts before and after some cuts, the encodings there, and the whole model; and what each of
    them takes."""
    last = len(model.points) - 1
    parts = {f"before_{at}": (0, at) for at in cuts} | {f"after_{at}": (at, last) for at in cuts}
    if whole:
        parts["whole"] = (0, last)
    others = {gv: f for gv, f in model.imported.mod.functions.items() if gv.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(others))
    arguments: dict[str, tuple[TensorSpec, ...]] = {}
    for name, (start, end) in parts.items():
        builder.add_func(_part(model, start, end).with_attr("global_symbol", name), name)
        arguments[name] = model.points[start].tensors
    for name, function, inputs in _coders(model, [0, *cuts, last] if whole else cuts):
        if name not in arguments:
            builder.add_func(function.with_attr("global_symbol", name), name)
            arguments[name] = inputs
    tidy = tvm.transform.Sequential(
        [
            relax.transform.Normalize(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(list(arguments)),
        ]
    )
    return tidy(builder.get()), arguments


def _part(model: Cuttable, start: int, end: int) -> relax.Function:
    """What is computed between two points. Before a point, outputs of the model may be computed, too."""
    graph = model.imported.graph
    begins, ready = model.variables[start], model.computed[start]
    ends = list(dict.fromkeys((*model.variables[end], *model.computed[end])))
    ends = [v for v in ends if v not in ready]
    inside = graph.upstream(ends, stop=begins)
    params = [relax.Var(graph.name(v), v.ty) for v in begins]
    body = [relax.VarBinding(v, p) for v, p in zip(begins, params, strict=True)]
    body += [b for b in graph.bindings if b.var in inside]
    value = relax.Tuple(ends) if len(ends) > 1 else ends[0]
    result = relax.Var("result", value.ty)
    bindings = [*body, relax.VarBinding(result, value)]
    block = relax.DataflowBlock(bindings) if graph.dataflow else relax.BindingBlock(bindings)
    function = relax.Function(params, relax.SeqExpr([block], result), result.ty)
    return relax.utils.copy_with_new_vars(function)


def _coders(model: Cuttable, at: Sequence[int]) -> Iterator[tuple[str, relax.Function, tuple[TensorSpec, ...]]]:
    """Functions that encode and decode one tensor, for each shape at these points."""
    variables = itertools.chain.from_iterable(model.variables[i] for i in at)
    for var, wire in itertools.product(variables, WIRES):
        if encoded_as(var.ty, wire) == "float32":
            continue
        extents = [int(d) for d in var.ty.shape]
        plain = relax.TensorType(extents, "float32")
        encoder = _function([plain], lambda builder, values, wire=wire: encode(builder, values[0], wire))
        yield coder("encode", wire, extents), encoder, (tensor_spec("value", plain),)
        parts = wire_types(plain, wire)
        decoder = _function(parts, lambda builder, values, wire=wire: [decode(builder, values, wire)])
        specs = tuple(tensor_spec(f"value_{i}", part) for i, part in enumerate(parts))
        yield coder("decode", wire, extents), decoder, specs


def _function(types: Sequence[relax.TensorType], emit: Callable[..., list[relax.Expr]]) -> relax.Function:
    builder = relax.BlockBuilder()
    params = [relax.Var(f"value_{i}", ty) for i, ty in enumerate(types)]
    with builder.function("main", params):
        with builder.dataflow():
            results = emit(builder, list(params))
            result = builder.emit_output(relax.Tuple(results) if len(results) > 1 else results[0])
        builder.emit_func_output(result)
    return builder.get()["main"]
