"""The BYOC code generator `relax.ext.zmq_offload`: split a partitioned module into device and subgraphs.

RunCodegen hands the code generator each function with `Codegen = "zmq_offload"` and replaces its calls by
`R.call_dps_packed("<symbol>", inputs, outputs)`. The device needs no other code: `zmq_offload.device.remote` registers
a packed function under the symbol when the library is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from zmq_offload.byoc.joined import MAIN
from zmq_offload.byoc.parameters import MAXIMUMS, MULTIPLES, multiples_of
from zmq_offload.byoc.returned import with_returned_results
from zmq_offload.byoc.tvm_internals import CODEGEN_ATTRIBUTE, codegen_of, without_constants
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import ANY, TensorSpec, datatype_of

CODEGEN = "zmq_offload"
INPUT_NAMES = "zmq_offload_inputs"
OUTPUT_NAMES = "zmq_offload_outputs"
"""Attributes of an offloaded function: its tensors' names on the wire. Default: the names of its parameters, and
output_0, output_1, ..."""


@dataclass(frozen=True)
class Subgraph:
    """A region as a module of its own: its `main` is ready to compile, and the device calls it by `symbol`. `entry` is
    the function that its library has for it."""

    model: str
    symbol: str
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    entry: str = MAIN


def _generate_nothing(*_: object) -> list[tvm.runtime.Module]:
    """Return no runtime module: a call by symbol is all that the device needs."""
    return []


tvm.register_global_func(f"relax.ext.{CODEGEN}", _generate_nothing, override=True)


def offloaded_functions(mod: tvm.IRModule) -> list[ir.GlobalVar]:
    """Return the functions of `mod` marked for offloading, in the order in which `main` first calls them."""
    marked = {gv.name_hint: gv for gv, f in mod.functions.items() if codegen_of(f) == CODEGEN}
    called = [gv.name_hint for gv in _called_in_order(mod["main"])]
    return [marked[name] for name in dict.fromkeys(called) if name in marked]


def split(mod: tvm.IRModule, models: Sequence[str]) -> tuple[tvm.IRModule, list[Subgraph]]:
    """Split a partitioned module into the device's module and the subgraphs.

    `models` names the models that the offloaded functions become, in the order of `offloaded_functions`.

    In the device's module, calls by symbol replace those functions; it has none of their weights, operators or names.
    Functions of other BYOC backends are handed to their code generators. A subgraph has its function as `main`, with
    composite functions inlined. Symbols are a hash of what the device knows: the same in every build, different for
    each model.
    """
    mod = _rename(mod, [f"offloaded_{i}" for i in range(len(models))])
    # TVM's names of merged functions list their operators, which the device must not know.
    # Without map_free_vars, the functions that main calls would be hashed by their addresses.
    fingerprint = tvm_ffi.structural_hash(mod["main"], map_free_vars=True)
    functions = offloaded_functions(mod)
    specs = [signature(mod[gv]) for gv in functions]
    symbols = [_symbol(model, i, *specs[i], fingerprint) for i, model in enumerate(models)]
    mod = _rename(mod, symbols)
    subgraphs = [
        Subgraph(model, symbol, _standalone(mod, symbol), *spec)
        for model, symbol, spec in zip(models, symbols, specs, strict=True)
    ]
    return relax.transform.DeadCodeElimination()(_device_module(mod)), subgraphs


def _device_module(mod: tvm.IRModule) -> tvm.IRModule:
    """Run the code generators: ours first, then those of other backends, whose attributes the module keeps."""
    others = {gv: backend for gv, f in mod.functions.items() if (backend := codegen_of(f)) not in (None, CODEGEN)}
    ours = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv in others:
        ours[gv] = mod[gv].without_attr(CODEGEN_ATTRIBUTE)
    device = with_returned_results(without_constants(relax.transform.RunCodegen()(ours), mod.attrs))
    if others:
        for gv, codegen in others.items():
            device[gv] = device[gv].with_attr(CODEGEN_ATTRIBUTE, codegen)
        # Libraries and weights of these functions belong to the device.
        device = relax.transform.RunCodegen()(device)
    return device


def signature(function: relax.Function) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of an offloaded function, with their names on the wire."""
    attrs = function.attrs or {}
    names = [str(n) for n in attrs[INPUT_NAMES]] if INPUT_NAMES in attrs else [p.name for p in function.params]
    inputs = input_specs(names, [p.ty for p in function.params])
    if MULTIPLES in attrs:
        inputs = tuple(with_multiples(spec, given) for spec, given in zip(inputs, attrs[MULTIPLES], strict=True))
    if MAXIMUMS in attrs:
        # An encoding flattens tensors and adds scales; those have no maximums.
        bounds = [*attrs[MAXIMUMS], *([[]] * len(inputs))]
        inputs = tuple(
            with_maximums(spec, given) if len(given) == len(spec.shape) else spec
            for spec, given in zip(inputs, bounds, strict=False)
        )
    types = result_types(function)
    ends = (
        [str(n) for n in attrs[OUTPUT_NAMES]] if OUTPUT_NAMES in attrs else [f"output_{i}" for i in range(len(types))]
    )
    return inputs, tuple(tensor_spec(name, ty) for name, ty in zip(ends, types, strict=True))


def result_types(function: relax.Function) -> list[ir.Type]:
    """Return the types of a function's results.

    The type that TVM gives to a call forgets extents that no parameter has, such as the number of rows that a run
    keeps. The result inside the function has them.
    """
    result = function.body.body.ty
    return list(result.fields) if isinstance(result, relax.TupleType) else [result]


def input_specs(names: Sequence[str], types: Sequence[ir.Type]) -> tuple[TensorSpec, ...]:
    """Return the specifications of the inputs of one function.

    Raises InvalidArgument for an input without one, and if symbolic extents of dimension 0 differ: a signature does not
    name extents, and workers take dimension 0 as the batch.
    """
    specs = tuple(
        with_multiples(tensor_spec(name, ty), given)
        for name, ty, given in zip(names, types, multiples_of(types), strict=True)
    )
    batches = [(s.name, ty.shape[0]) for s, ty in zip(specs, types, strict=True) if s.shape and s.shape[0] == ANY]
    for name, extent in batches[1:]:
        first, batch = batches[0]
        if not tvm_ffi.structural_equal(extent, batch):
            one, other = (re.sub(r"T\.int64\((\d+)\)", r"\1", str(e)) for e in (batch, extent))
            raise InvalidArgument(
                f"dimension 0 is {one} for input {first!r} and {other} for input {name!r}; symbolic extents there are "
                "the batch and must be the same: fix one of them, give both the same name with --input, or cut "
                "elsewhere"
            )
    return specs


def with_multiples(spec: TensorSpec, multiples: Sequence[int]) -> TensorSpec:
    """Return the specification with what its extents have to be multiples of, if that is not 1 for all."""
    whole = tuple(int(m) for m in multiples)
    return replace(spec, multiples=whole) if any(m > 1 for m in whole) else spec


def with_maximums(spec: TensorSpec, maximums: Sequence[int]) -> TensorSpec:
    """Return the specification with the largest that its symbolic extents may be, where one has a maximum."""
    most = tuple(int(m) if extent == ANY else ANY for m, extent in zip(maximums, spec.shape, strict=True))
    return replace(spec, maximums=most) if any(m != ANY for m in most) else spec


def tensor_spec(name: str, ty: ir.Type) -> TensorSpec:
    """Return the specification of a tensor of a Relax type; raise InvalidArgument if the type has none."""
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise InvalidArgument(f"{name!r} has type {ty}; it must be a tensor of known rank and shape")
    shape = tuple(int(d) if isinstance(d, tirx.IntImm) else ANY for d in ty.shape)
    if str(ty.dtype) == "bfloat16":
        raise InvalidArgument(
            f"{name!r} is of bfloat16, which neither NumPy nor messages have; cast it to float32, or cut elsewhere"
        )
    return TensorSpec(str(name), datatype_of(str(ty.dtype)), shape)  # msgspec cannot encode TVM's String


def _called_in_order(function: relax.Function) -> list[ir.GlobalVar]:
    found: list[ir.GlobalVar] = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, ir.Call) and isinstance(expr.op, ir.GlobalVar):
            found.append(expr.op)

    relax.analysis.post_order_visit(function, visit)
    return found


def _rename(mod: tvm.IRModule, names: Sequence[str]) -> tvm.IRModule:
    renamed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, name in zip(offloaded_functions(mod), names, strict=True):
        renamed[gv] = mod[gv].with_attr("global_symbol", name)
    return relax.transform.NormalizeGlobalVar()(renamed)


def _symbol(
    model: str, index: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], fingerprint: int
) -> str:
    known = [model, index, [t.to_json() for t in (*inputs, *outputs)], fingerprint]
    return f"{CODEGEN}_{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]}"


def _standalone(mod: tvm.IRModule, symbol: str) -> tvm.IRModule:
    """Return a module whose `main` is the offloaded function, with its composite functions inlined."""
    functions = {gv.name_hint: f for gv, f in mod.functions.items()}
    needed: dict[str, ir.BaseFunc] = {}
    todo = [symbol]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed[name] = functions[name]
            if isinstance(functions[name], relax.Function):
                todo += [gv.name_hint for gv in relax.analysis.all_global_vars(functions[name])]
    main = needed.pop(symbol)
    for attr in (CODEGEN_ATTRIBUTE, INPUT_NAMES, OUTPUT_NAMES, MULTIPLES, MAXIMUMS):
        main = main.without_attr(attr)
    others = {gv: f for gv, f in mod.functions.items() if gv.name_hint in needed}
    builder = relax.BlockBuilder(tvm.IRModule(others))
    builder.add_func(main.with_attr("global_symbol", "main"), "main")
    flatten = tvm.transform.Sequential(
        [
            relax.transform.LambdaLift(),
            relax.transform.InlinePrivateFunctions(),
            relax.transform.Normalize(),
            relax.transform.ConvertToDataflow(min_size=1),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    return flatten(builder.get())
