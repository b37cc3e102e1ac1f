"""Compute models of float16 and bfloat16 in float32, with weights of 16 bits.

CPUs without arithmetic on 16-bit numbers convert each operand of each operation, one by one. Here all tensors inside a
function become float32, sums too. Parameters, results, and operands of calls to other functions keep their datatype,
so that signatures and boundaries do not change: they are cast at the border. NumPy and messages have no bfloat16: an
imported model with it gets float32 parameters, results and cuts as well. Large constants keep their 16 bits,
followed by a cast. The kernels of `schedules` look through that cast, and convert weights where they load them.

A value that float16 cannot hold is not rounded or infinite inside a function: it is what float32 makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from zmq_offload.compile.fold import fold_constants

HALF = ("float16", "bfloat16")

# Constants up to this many values, and vectors such as biases, become float32: they are too few to matter.
_SMALL = 1024
# Operators that copy values: a result from a 16-bit constant is cast after them, which moves half of the bytes.
_COPIES = ("relax.take", "relax.gather_nd", "relax.strided_slice", "relax.index_tensor")


def compute_in_float32(mod: tvm.IRModule) -> tvm.IRModule:
    """Return `mod` with the Relax functions that compute in float16 or bfloat16 computing in float32."""
    widener = _Widener(mod)
    for gv, function in mod.functions.items():
        codegen = function.attrs and "Codegen" in function.attrs
        if isinstance(function, relax.Function) and not codegen and _has_half(function):
            widener.builder_.update_func(gv, widener.function(function))
    wide = widener.builder_.get()
    return wide if mod.attrs is None else wide.with_attrs(mod.attrs)


def without_bfloat16(mod: tvm.IRModule) -> tvm.IRModule:
    """Return an imported model with float32 for bfloat16 in all tensors but large constants, so that it can be cut."""
    functions = [f for f in mod.functions.values() if isinstance(f, relax.Function)]
    if len(functions) != 1 or not _has_half(functions[0], ("bfloat16",)):
        return mod
    widener = _Widener(fold_constants(mod), ("bfloat16",), border=False)
    widener.builder_.update_func(mod.get_global_var("main"), widener.function(widener.builder_.get()["main"]))
    wide = widener.builder_.get()
    return wide if mod.attrs is None else wide.with_attrs(mod.attrs)


def _has_half(function: relax.Function, kinds: Sequence[str] = HALF) -> bool:
    """Whether a tensor in `function` has 16 bits. False for functions inside others, which are left alone."""
    found, nested = [False], [False]

    def visit(expr: relax.Expr) -> None:
        found[0] |= isinstance(expr, relax.Expr) and _is_half(expr.ty, kinds)
        nested[0] |= isinstance(expr, relax.Function) and not expr.same_as(function)

    relax.analysis.post_order_visit(function, visit)
    return found[0] and not nested[0]


def _is_half(ty: ir.Type, kinds: Sequence[str]) -> bool:
    """Whether a tensor, or one in a tuple, has a datatype of `kinds`."""
    if isinstance(ty, relax.TupleType):
        return any(_is_half(field, kinds) for field in ty.fields)
    return isinstance(ty, relax.TensorType) and str(ty.dtype) in kinds


def _wide(ty: ir.Type, kinds: Sequence[str]) -> ir.Type:
    """Return a type with float32 in place of `kinds`."""
    if isinstance(ty, relax.TupleType):
        return relax.TupleType([_wide(field, kinds) for field in ty.fields])
    if not _is_half(ty, kinds):
        return ty
    return relax.TensorType(ty.shape, "float32", ty.vdevice, ty.ndim if ty.shape is None else -1)


def _in_float32(node: tvm.Object, kinds: Sequence[str]) -> tvm.Object:
    """Return an operator's attributes, or a PrimFunc, with float32 in place of `kinds`.

    TVM has no mutator for either in Python, but writes both as JSON, where a datatype is a string.
    """
    text = tvm.ir.save_json(node)
    for half in kinds:
        text = text.replace(json.dumps(half), json.dumps("float32"))
    return tvm.ir.load_json(text)


@mutator
class _Widener(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    """Rewrites one function after the other: what an old expression has in a datatype of `kinds` becomes float32.

    With a `border`, parameters and results are cast; without one, they become float32, too.
    """

    builder_: relax.BlockBuilder

    def __init__(self, mod: tvm.IRModule, kinds: Sequence[str] = HALF, border: bool = True) -> None:
        super().__init__(mod)
        self._kinds, self._border = kinds, border
        self._wide_functions: dict[ir.GlobalVar, ir.GlobalVar] = {}
        self._old: relax.Function
        self._result: relax.Expr | None = None

    def function(self, function: relax.Function) -> relax.Function:
        """Return `function` with float32 inside."""
        self._old, self._result = function, None
        params = list(function.params)
        if not self._border:
            params = [ir.Var(p.name, _wide(p.ty, self._kinds)) if self._half(p.ty) else p for p in params]
            for old, param in zip(function.params, params, strict=True):
                self.set_var_remap(old, param)
        new = self.visit_expr(function)
        if self._result is None:  # no bindings: it returns its parameters
            return function
        body = self.builder_.normalize(relax.SeqExpr(new.body.blocks, self._result))
        return relax.Function(params, body, body.ty, function.is_pure, function.attrs)

    def _half(self, ty: ir.Type) -> bool:
        return _is_half(ty, self._kinds)

    # -- the border ----------------------------------------------------------------------------------------------

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        self.builder_._begin_dataflow_block()
        return self._block(block, self.builder_.emit_output)

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        self.builder_._begin_binding_block()
        return self._block(block, self.builder_.emit)

    def _block(self, block: relax.BindingBlock, emit: Callable[[relax.Expr], relax.Var]) -> relax.BindingBlock:
        """Rewrite a block; the function's first one casts its parameters, and its last one the results."""
        outer = self._old.body.blocks
        if block.same_as(outer[0]):
            for param in self._old.params if self._border else ():
                if self._half(param.ty):
                    self.set_var_remap(param, emit(self._cast(param, _wide(param.ty, self._kinds))))
        for binding in block.bindings:
            self.visit_binding(binding)
        if block.same_as(outer[-1]):
            result = self.visit_expr(self._old.body.body)
            self._result = emit(self._cast(result, self._old.body.body.ty)) if self._border else result
        return self.builder_._end_block()

    def _cast(self, value: relax.Expr, ty: ir.Type) -> relax.Expr:
        """Return `value` with the datatypes of `ty`."""
        if isinstance(ty, relax.TupleType):
            known = isinstance(value, relax.Tuple)
            fields = value.fields if known else [relax.TupleGetItem(value, i) for i in range(len(ty.fields))]
            emitted = fields if known else [self.builder_.emit(field) for field in fields]
            return relax.Tuple([self._cast(field, wanted) for field, wanted in zip(emitted, ty.fields, strict=True)])
        if not isinstance(ty, relax.TensorType) or value.ty.dtype == ty.dtype:
            return value
        return self.builder_.emit(relax.op.astype(value, str(ty.dtype)))

    # -- inside --------------------------------------------------------------------------------------------------

    def visit_generic_const_(self, const: ir.GenericConst) -> relax.Expr:
        if not self._half(const.ty):
            return const
        array = const.value.numpy()
        if array.ndim < 2 or array.size <= _SMALL:
            return relax.const(array.astype(np.float32), "float32")
        return self.builder_.emit(relax.op.astype(const, "float32"))

    def visit_match_cast_(self, binding: relax.MatchCast) -> None:
        value = self.visit_expr(binding.value)
        self.set_var_remap(binding.var, self.builder_.match_cast(value, _wide(binding.ty, self._kinds)))

    def visit_call_(self, call: ir.Call) -> relax.Expr:
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        half = self._half(call.ty)
        if name == "relax.call_tir":
            return self._prim_func(call) if half or any(self._half(a.ty) for a in call.args[1:2]) else call
        if name in _COPIES and isinstance(call.args[0], ir.GenericConst) and half:
            rest = [self.visit_expr(a) for a in call.args[1:]]
            copied = self.builder_.emit(ir.Call(call.op, [call.args[0], *rest], call.attrs, call.ty_args))
            return relax.op.astype(copied, "float32")
        args = [self.visit_expr(a) for a in call.args]
        if not name or name.startswith(("relax.call_", "relax.invoke_")):
            return self._foreign(call, args)
        if name == "relax.astype" and (half or str(call.ty.dtype) == "float32"):
            return args[0] if str(args[0].ty.dtype) == "float32" else relax.op.astype(args[0], "float32")
        attrs = call.attrs
        if attrs is not None and any(f'"{name}"' in str(tvm.ir.save_json(attrs)) for name in self._kinds):
            attrs = _in_float32(attrs, self._kinds)
        return ir.Call(call.op, args, attrs, [_wide(ty, self._kinds) for ty in call.ty_args])

    def _prim_func(self, call: ir.Call) -> relax.Expr:
        """Call a PrimFunc of the importer as one that computes in float32."""
        old = call.args[0]
        if old not in self._wide_functions:
            func = _in_float32(self.builder_.get()[old], self._kinds)
            self._wide_functions[old] = self.builder_.add_func(func, f"{old.name_hint}_float32")
        args = [self.visit_expr(a) for a in call.args[1:]]
        return ir.Call(
            call.op, [self._wide_functions[old], *args], call.attrs, [_wide(ty, self._kinds) for ty in call.ty_args]
        )

    def _foreign(self, call: ir.Call, args: list[relax.Expr]) -> relax.Expr:
        """Call what this pass does not rewrite, such as a subgraph: with the datatypes that it has."""
        args = [self._cast(new, old.ty) for new, old in zip(args, call.args, strict=True)]
        op = self.visit_expr(call.op) if isinstance(call.op, ir.Var) else call.op
        result = self.builder_.emit(ir.Call(op, args, call.attrs, call.ty_args))
        return self._cast(result, _wide(call.ty, self._kinds))
