"""Add the encoding of boundary tensors to the graphs on both sides of a cut."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import tvm
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from zmq_offload.byoc.codegen import INPUT_NAMES, OUTPUT_NAMES, offloaded_functions, signature
from zmq_offload.byoc.encoding import Wire, decode, encode, encoded_as, wire_types
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec


def encode_boundary(mod: tvm.IRModule, wires: Sequence[Wire]) -> tvm.IRModule:
    """Make offloaded functions take and return encoded tensors, and make `main` encode and decode them.

    Takes a partitioned module; `wires` has the encoding of each function, in the order of `offloaded_functions`.
    Returns a partitioned module in which those functions decode their inputs first and encode their outputs last.
    Their wire names follow: an int8 tensor "t" is followed by its scales, "t.scale" (docs/splitting.md). A tensor that
    goes to several functions in one encoding is encoded once. Functions with "float32" and those of other backends are
    left alone. Raises InvalidArgument for an integer input with int8.
    """
    functions = offloaded_functions(mod)
    chosen = {gv: wire for gv, wire in zip(functions, wires, strict=True) if wire != "float32"}
    if not chosen:
        return mod
    builder = relax.BlockBuilder(
        tvm.IRModule({gv: f for gv, f in mod.functions.items() if gv not in chosen}, attrs=mod.attrs)
    )
    callees = {gv: builder.add_func(_encoded_function(mod, mod[gv], wire), gv.name_hint) for gv, wire in chosen.items()}
    encode_calls = _EncodeCalls(builder.get(), callees, chosen)
    builder.update_func(builder.get().get_global_var("main"), encode_calls.visit_expr(mod["main"]))
    return relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(builder.get()))


def _encoded_function(mod: tvm.IRModule, function: relax.Function, wire: Wire) -> relax.Function:
    """Return an offloaded function that decodes its inputs first and encodes its outputs last."""
    inputs, outputs = signature(function)
    for spec in inputs:
        if wire == "int8" and spec.dtype.kind in "iu":
            raise InvalidArgument(
                f"--wire int8: tensor {spec} has integers, which must arrive exactly; use float16, which keeps "
                "them, or cut elsewhere"
            )
    builder = relax.BlockBuilder(tvm.IRModule(mod.functions))
    params = [_wire_params(param, encoded_as(param.ty, wire)) for param in function.params]
    blocks = function.body.blocks
    dataflow = all(isinstance(block, relax.DataflowBlock) for block in blocks)
    with builder.function("encoded", [tensor for tensors in params for tensor in tensors]):
        with builder.dataflow() if dataflow else contextlib.nullcontext():
            for param, tensors in zip(function.params, params, strict=True):
                value = decode(builder, tensors, encoded_as(param.ty, wire))
                builder.emit_normalized(relax.VarBinding(param, value))
            for block in blocks:
                for binding in block.bindings:
                    builder.emit_normalized(binding)
            results = _fields(function.body.body)
            encoded = [t for r in results for t in encode(builder, r, encoded_as(r.ty, wire))]
            result = relax.Tuple(encoded) if len(encoded) > 1 else encoded[0]
            returned = builder.emit_output(result) if dataflow else builder.emit(result)
        builder.emit_func_output(returned)
    attrs = dict(function.attrs) | {
        INPUT_NAMES: _wire_names(inputs, [p.ty for p in function.params], wire),
        OUTPUT_NAMES: _wire_names(outputs, [r.ty for r in results], wire),
    }
    return relax.utils.copy_with_new_vars(builder.get()["encoded"].with_attrs(attrs))


def _wire_params(param: relax.Var, wire: Wire) -> list[relax.Var]:
    return [relax.Var(_with_suffix(param.name, i, "_scale"), ty) for i, ty in enumerate(wire_types(param.ty, wire))]


def _wire_names(specs: Sequence[TensorSpec], types: Sequence[relax.TensorType], wire: Wire) -> list[str]:
    taken = {spec.name for spec in specs}
    found = []
    for spec, ty in zip(specs, types, strict=True):
        for i, _ in enumerate(wire_types(ty, encoded_as(ty, wire))):
            own = _with_suffix(spec.name, i, ".scale")
            while i and own in taken:
                own += "_"
            taken.add(own)
            found.append(own)
    return found


def _with_suffix(name: str, index: int, suffix: str) -> str:
    return name + suffix if index else name


def _fields(value: relax.Expr) -> list[relax.Expr]:
    """Return the results of a function one by one."""
    if not isinstance(value.ty, relax.TupleType):
        return [value]
    return [relax.TupleGetItem(value, i) for i in range(len(value.ty.fields))]


@mutator
class _EncodeCalls(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    """Encodes the arguments of offloaded functions in `main` and decodes their results."""

    def __init__(
        self, mod: tvm.IRModule, callees: Mapping[ir.GlobalVar, ir.GlobalVar], wires: Mapping[ir.GlobalVar, Wire]
    ) -> None:
        super().__init__(mod)
        self._callees = callees
        self._wires = wires
        self._sent: dict[tuple[relax.Var, Wire], list[relax.Expr]] = {}

    def visit_call_(self, call: ir.Call) -> relax.Expr:
        old = call.op
        call = self.visit_expr_post_order(call)
        if not isinstance(old, ir.GlobalVar) or old not in self._callees:
            return call
        wire, builder = self._wires[old], self.builder_
        arguments = [tensor for value in call.args for tensor in self._encoded(value, wire)]
        received = builder.emit(relax.Call(self._callees[old], arguments))
        tensors = iter(
            [builder.emit(t) for t in _fields(received)] if isinstance(received.ty, relax.TupleType) else [received]
        )
        types = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        values = [
            decode(builder, [next(tensors) for _ in wire_types(ty, encoded_as(ty, wire))], encoded_as(ty, wire))
            for ty in types
        ]
        return relax.Tuple(values) if isinstance(call.ty, relax.TupleType) else values[0]

    def _encoded(self, value: relax.Expr, wire: Wire) -> list[relax.Expr]:
        """Encode a tensor once, also if it goes to several functions. (Not if it leaves its dataflow block: the
        encoded tensors are visible inside only.)"""
        if not isinstance(value, relax.DataflowVar):
            return encode(self.builder_, value, encoded_as(value.ty, wire))
        if (value, wire) not in self._sent:
            self._sent[value, wire] = encode(self.builder_, value, encoded_as(value.ty, wire))
        return self._sent[value, wire]
