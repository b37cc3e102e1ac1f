"""Put the encoding of what crosses a cut into the graphs on its two sides."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from zmq_offload.byoc.codegen import INPUT_NAMES, OUTPUT_NAMES, offloaded_functions, signature
from zmq_offload.byoc.encoding import Wire, decode, encode, encoded_as, wire_types
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec


def encode_boundary(mod: tvm.IRModule, wires: Sequence[Wire]) -> tvm.IRModule:
    """A partitioned module whose offloaded functions take and return encoded tensors, and whose `main` sends such.

    `wires` has the encoding of each function, in the order of `offloaded_functions`. The scales of an int8 tensor "t"
    are the tensor "t.scale" behind it (docs/splitting.md). Raises InvalidArgument, naming the tensor, for an input of
    integers that is to travel as int8.
    """
    functions = offloaded_functions(mod)
    chosen = {gv: wire for gv, wire in zip(functions, wires, strict=True) if wire != "float32"}
    if not chosen:
        return mod
    builder = relax.BlockBuilder(
        tvm.IRModule({gv: f for gv, f in mod.functions.items() if gv not in chosen}, attrs=mod.attrs)
    )
    callees = {gv: builder.add_func(_receiver(mod, mod[gv], wire), gv.name_hint) for gv, wire in chosen.items()}
    sender = _Sender(builder.get(), callees, chosen)
    builder.update_func(builder.get().get_global_var("main"), sender.visit_expr(mod["main"]))
    return relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(builder.get()))


def _receiver(mod: tvm.IRModule, function: relax.Function, wire: Wire) -> relax.Function:
    """An offloaded function with its inputs decoded at its head and its outputs encoded at its end."""
    inputs, outputs = signature(function)
    for spec in inputs:
        if wire == "int8" and spec.dtype.kind in "iu":
            raise InvalidArgument(
                f"--wire int8: tensor {spec} has integers, which do not stand for a range of values; cut elsewhere, or "
                "use float16, which leaves them as they are"
            )
    builder = relax.BlockBuilder(tvm.IRModule(mod.functions))
    params = [
        [relax.Var(_beside(p.name, i, "_scale"), ty) for i, ty in enumerate(wire_types(p.ty, encoded_as(p.ty, wire)))]
        for p in function.params
    ]
    blocks = function.body.blocks
    dataflow = all(isinstance(block, relax.DataflowBlock) for block in blocks)
    with builder.function("receiver", [part for parts in params for part in parts]):
        with builder.dataflow() if dataflow else contextlib.nullcontext():
            for param, parts in zip(function.params, params, strict=True):
                value = decode(builder, parts, encoded_as(param.ty, wire))
                builder.emit_normalized(relax.VarBinding(param, value))
            for block in blocks:
                for binding in block.bindings:
                    builder.emit_normalized(binding)
            results = _fields(function.body.body)
            parts = [p for r in results for p in encode(builder, r, encoded_as(r.ty, wire))]
            result = relax.Tuple(parts) if len(parts) > 1 else parts[0]
            returned = builder.emit_output(result) if dataflow else builder.emit(result)
        builder.emit_func_output(returned)
    attrs = dict(function.attrs) | {
        INPUT_NAMES: _wire_names(inputs, [p.ty for p in function.params], wire),
        OUTPUT_NAMES: _wire_names(outputs, [r.ty for r in results], wire),
    }
    return relax.utils.copy_with_new_vars(builder.get()["receiver"].with_attrs(attrs))


def _wire_names(specs: Sequence[TensorSpec], types: Sequence[relax.TensorType], wire: Wire) -> list[str]:
    taken = {spec.name for spec in specs}
    found = []
    for spec, ty in zip(specs, types, strict=True):
        for i, _ in enumerate(wire_types(ty, encoded_as(ty, wire))):
            own = _beside(spec.name, i, ".scale")
            while i and own in taken:
                own += "_"
            taken.add(own)
            found.append(own)
    return found


def _beside(name: str, index: int, suffix: str) -> str:
    return name + suffix if index else name


def _fields(value: relax.Expr) -> list[relax.Expr]:
    """What a function returned, each by itself."""
    if not isinstance(value.ty, relax.TupleType):
        return [value]
    return [relax.TupleGetItem(value, i) for i in range(len(value.ty.fields))]


@mutator
class _Sender(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    """Encodes what `main` hands to offloaded functions and decodes what they return."""

    def __init__(
        self, mod: tvm.IRModule, callees: Mapping[ir.GlobalVar, ir.GlobalVar], wires: Mapping[ir.GlobalVar, Wire]
    ) -> None:
        super().__init__(mod)
        self._callees = callees
        self._wires = wires
        self._sent: dict[tuple[Any, Wire], list[relax.Expr]] = {}

    def visit_call_(self, call: ir.Call) -> relax.Expr:
        old = call.op
        call = self.visit_expr_post_order(call)
        if not isinstance(old, ir.GlobalVar) or old not in self._callees:
            return call
        wire, builder = self._wires[old], self.builder_
        arguments = [part for value in call.args for part in self._encoded(value, wire)]
        received = builder.emit(relax.Call(self._callees[old], arguments))
        parts = iter(
            [builder.emit(p) for p in _fields(received)] if isinstance(received.ty, relax.TupleType) else [received]
        )
        types = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        values = [
            decode(builder, [next(parts) for _ in wire_types(ty, encoded_as(ty, wire))], encoded_as(ty, wire))
            for ty in types
        ]
        return relax.Tuple(values) if isinstance(call.ty, relax.TupleType) else values[0]

    def _encoded(self, value: relax.Expr, wire: Wire) -> list[relax.Expr]:
        """A tensor that goes to several models is encoded once (unless it is used beyond its dataflow block, where
        what is emitted here is not to be had)."""
        if not isinstance(value, relax.DataflowVar):
            return encode(self.builder_, value, encoded_as(value.ty, wire))
        if (value, wire) not in self._sent:
            self._sent[value, wire] = encode(self.builder_, value, encoded_as(value.ty, wire))
        return self._sent[value, wire]
