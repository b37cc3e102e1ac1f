"""The code generator `relax.ext.zmq_offload`, and what it leaves of a partitioned model.

TVM's RunCodegen hands every function with `Codegen = "zmq_offload"` to it. There is nothing to generate on the device:
the call that RunCodegen leaves in its place, `R.call_dps_packed("<symbol>", inputs, outputs)`, is the whole of it, and
`zmq_offload.device.remote` gives the symbol its meaning when the library is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import ANY, TensorSpec, datatype_of

CODEGEN = "zmq_offload"
INPUT_NAMES = "zmq_offload_inputs"
OUTPUT_NAMES = "zmq_offload_outputs"
"""Function attributes with the wire names of an offloaded function's tensors; TVM's own variable names without them."""


@dataclass(frozen=True)
class Subgraph:
    """One offloaded part: `module` has it as `main`, ready to compile; `symbol` is what the device calls it by."""

    model: str
    symbol: str
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _generate_nothing(_functions: Any, _options: Any, _constant_names: Any) -> list[Any]:
    return []


tvm.register_global_func(f"relax.ext.{CODEGEN}", _generate_nothing, override=True)


def offloaded_functions(mod: tvm.IRModule) -> list[ir.GlobalVar]:
    """The functions of `mod` that are to be offloaded, in the order in which `main` first calls them."""
    marked = {gv.name_hint: gv for gv, f in mod.functions.items() if f.attrs and f.attrs.get("Codegen") == CODEGEN}
    called = [gv.name_hint for gv in _called_in_order(mod["main"])]
    return [marked[name] for name in dict.fromkeys(called) if name in marked]


def split(mod: tvm.IRModule, models: Sequence[str]) -> tuple[tvm.IRModule, list[Subgraph]]:
    """Split a partitioned module into the device's module and the subgraphs.

    `models` names the model that each offloaded function becomes, in the order of `offloaded_functions`. The device's
    module has nothing of the subgraphs but calls by symbol.
    """
    mod = _rename(mod, [f"offloaded_{i}" for i in range(len(models))])
    # TVM's names of merged functions list their operators; the symbols may not. They are derived from what the device
    # knows anyway, so that they are the same in every build, differ between models, and tell nothing of the subgraph.
    # (The functions that main calls are free in it; unmapped, they would be hashed by their addresses.)
    fingerprint = tvm_ffi.structural_hash(mod["main"], map_free_vars=True)
    functions = offloaded_functions(mod)
    specs = [signature(mod[gv]) for gv in functions]
    symbols = [_symbol(model, i, *specs[i], fingerprint) for i, model in enumerate(models)]
    mod = _rename(mod, symbols)
    subgraphs = [
        Subgraph(model, symbol, _standalone(mod, symbol), *spec)
        for model, symbol, spec in zip(models, symbols, specs, strict=True)
    ]
    return relax.transform.DeadCodeElimination()(_device(mod)), subgraphs


def _device(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with calls by symbol in the place of functions that a code generator takes: ours, and others'."""
    others = {
        gv: str(f.attrs["Codegen"])
        for gv, f in mod.functions.items()
        if f.attrs and f.attrs.get("Codegen") not in (None, CODEGEN)
    }
    ours = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv in others:
        ours[gv] = mod[gv].without_attr("Codegen")
    done = relax.transform.RunCodegen()(ours)
    # RunCodegen hangs the offloaded weights on the module (const_name_to_constant), and they would be exported with it.
    device = tvm.IRModule(done.functions, attrs=mod.attrs)
    if others:
        for gv, codegen in others.items():
            device[gv] = device[gv].with_attr("Codegen", codegen)
        # What this hangs on the module, libraries and weights, belongs there.
        device = relax.transform.RunCodegen()(device)
    return device


def signature(function: relax.Function) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of an offloaded function, by the names they have on the wire."""
    attrs = function.attrs or {}
    names = [str(n) for n in attrs[INPUT_NAMES]] if INPUT_NAMES in attrs else [p.name for p in function.params]
    inputs = input_specs(names, [p.ty for p in function.params])
    result = function.ret_ty
    types = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    ends = (
        [str(n) for n in attrs[OUTPUT_NAMES]] if OUTPUT_NAMES in attrs else [f"output_{i}" for i in range(len(types))]
    )
    return inputs, tuple(tensor_spec(name, ty) for name, ty in zip(ends, types, strict=True))


def input_specs(names: Sequence[str], types: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The signatures of inputs of one function.

    Raises InvalidArgument for one that has none, and for symbolic extents at dimension 0 that are not the same: a
    signature has no names of extents, and workers take that dimension for the batch.
    """
    specs = tuple(tensor_spec(name, ty) for name, ty in zip(names, types, strict=True))
    batches = [(s.name, ty.shape[0]) for s, ty in zip(specs, types, strict=True) if s.shape and s.shape[0] == ANY]
    for name, extent in batches[1:]:
        first, batch = batches[0]
        if not tvm_ffi.structural_equal(extent, batch):
            one, other = (re.sub(r"T\.int64\((\d+)\)", r"\1", str(e)) for e in (batch, extent))
            raise InvalidArgument(
                f"dimension 0 of input {first!r} is {one}, of input {name!r} {other}: symbolic extents there are the "
                "batch and must be the same; fix one of them, or cut elsewhere"
            )
    return specs


def tensor_spec(name: str, ty: Any) -> TensorSpec:
    """The signature of a tensor of a Relax type. Raises InvalidArgument if it has none."""
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise InvalidArgument(f"{name!r} is not a tensor with a shape that is known before the model runs: {ty}")
    shape = tuple(int(d) if isinstance(d, tirx.IntImm) else ANY for d in ty.shape)
    return TensorSpec(str(name), datatype_of(str(ty.dtype)), shape)  # msgspec does not write TVM's strings


def _called_in_order(function: relax.Function) -> list[ir.GlobalVar]:
    found: list[ir.GlobalVar] = []

    def visit(expr: Any) -> None:
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
    """A module whose `main` is the offloaded function, with its composite functions inlined."""
    functions = {gv.name_hint: f for gv, f in mod.functions.items()}
    needed: dict[str, Any] = {}
    todo = [symbol]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed[name] = functions[name]
            if isinstance(functions[name], relax.Function):
                todo += [gv.name_hint for gv in relax.analysis.all_global_vars(functions[name])]
    main = needed.pop(symbol)
    for attr in ("Codegen", INPUT_NAMES, OUTPUT_NAMES):
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
