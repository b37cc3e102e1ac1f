"""Compute products in float16 with sums in float32, as tensor cores do. All else stays in float32.

A value that a product reads becomes float16 once, where it is computed; what else reads it converts it back. So tensors
between kernels have half of the bytes. Operators that only move values pass on float16 if a product reads the result.
Inputs and outputs of a function keep their datatype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Literal

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr, IRModule, Var
from tvm.ir.transform import Pass, Sequential, module_pass
from tvm.relax.expr_functor import mutator

from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.scales import fold_scales
from zmq_offload.schedules.simplify import GraphRewriter, constant_array, constant_expr, rewritten, simplify
from zmq_offload.schedules.tvm_internals import operator_name

Precision = Literal["float32", "float16"]
"""The datatype of the operands of products on a GPU."""

_PRODUCTS = {
    "relax.matmul",
    "relax.nn.conv1d",
    "relax.nn.conv2d",
    "relax.nn.conv3d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d_transpose",
}

_MOVES = {
    "relax.broadcast_to",
    "relax.concat",
    "relax.expand_dims",
    "relax.flatten",
    "relax.nn.max_pool2d",
    "relax.permute_dims",
    "relax.reshape",
    "relax.squeeze",
    "relax.strided_slice",
}

_LARGEST = float(np.finfo(np.float16).max)


def half_products(mod: IRModule, *, emulated: bool = False) -> IRModule:
    """Return `mod` with the products of its Relax functions in float16.

    With `emulated` they are products of float32 whose operands are rounded to float16: the same values, for CPUs, which
    have no such products. A product with a weight that float16 cannot hold stays as it is.
    """
    mod = Sequential(
        [
            relax.transform.Normalize(),
            *_plain(simplify),
            *_plain(fold_scales),
            *_plain(simplify),
            relax.transform.CanonicalizeBindings(),
        ]
    )(mod)
    halves = _Halves(mod, _wanted(mod), emulated)
    return relax.transform.DeadCodeElimination()(rewritten(mod, halves))


def _plain(function: Callable[[IRModule], IRModule]) -> list[Pass]:
    run = module_pass(lambda mod, _: function(mod), opt_level=0, name=f"zmq_offload.{function.__name__}")
    return [run, relax.transform.DeadCodeElimination()]


def _is_product(call: Expr) -> bool:
    """Whether a call is a product that float16 can compute, as far as its operands are known."""
    if operator_name(call) not in _PRODUCTS or str(call.ty.dtype) != "float32":
        return False
    if any(str(arg.ty.dtype) != "float32" for arg in call.args):
        return False
    constants = [array for arg in call.args if (array := constant_array(arg)) is not None]
    return all(np.abs(array).max(initial=0) <= _LARGEST for array in constants)


def _wanted(mod: IRModule) -> set[Var]:
    """The variables that products read, at once or through operators that only move values."""
    wanted: set[Var] = set()
    for function in mod.functions.values():
        if not isinstance(function, relax.Function):
            continue
        bindings: list[relax.VarBinding] = []
        tuples: dict[Var, relax.Tuple] = {}

        def seen(
            expr: Expr,
            bindings: list[relax.VarBinding] = bindings,
            tuples: Mapping[Var, relax.Tuple] = tuples,
        ) -> None:
            if isinstance(expr, relax.SeqExpr):
                bindings += [b for block in expr.blocks for b in block.bindings if isinstance(b, relax.VarBinding)]

        relax.analysis.post_order_visit(function, seen)
        tuples.update({b.var: b.value for b in bindings if isinstance(b.value, relax.Tuple)})
        for binding in reversed(bindings):
            call = binding.value
            if _is_product(call) or (operator_name(call) in _MOVES and binding.var in wanted):
                for arg in call.args:
                    of_tuple = tuples.get(arg, arg)
                    fields = of_tuple.fields if isinstance(of_tuple, relax.Tuple) else [arg]
                    wanted.update(f for f in fields if isinstance(f, Var) and _is_float(f))
    return wanted


def _is_float(expr: Expr) -> bool:
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == "float32"


@mutator
class _Halves(GraphRewriter):
    """Rewrites functions: `_half` has the float16 of each variable that a product reads."""

    def __init__(self, mod: IRModule, wanted: set[Var], emulated: bool) -> None:
        super().__init__(mod)
        self._wanted = wanted
        self._emulated = emulated
        self._half: dict[Var, Expr] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call, var = binding.value, binding.var
        if _is_product(call):
            self._bind(var, self._product(call))
        elif operator_name(call) in _MOVES and var in self._wanted and all(map(self._has_half, call.args)):
            moved = self.builder_.emit(Call(call.op, [*map(self._half_of, call.args)], call.attrs, call.ty_args))
            self._half[var] = moved
            if not isinstance(var, relax.DataflowVar):
                self._bind(var, self._full(moved))
        else:
            super().visit_var_binding_(binding)
        if var in self._wanted and var not in self._half:
            self._half[var] = self._rounded(self.visit_expr(var))

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> Expr:
        if var in self._half:
            return self._full(self._half[var])
        return super().visit_dataflow_var_(var)

    def _bind(self, var: Var, value: Expr) -> None:
        emit = self.builder_.emit if isinstance(var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(var, emit(value))

    def _product(self, call: Call) -> Expr:
        operands = [self._half_of(arg) for arg in call.args]
        if self._emulated:
            return Call(call.op, [self._full(operand) for operand in operands], call.attrs, call.ty_args)
        name = operator_name(call)
        if name == "relax.matmul":
            return relax.op.matmul(*operands, out_dtype="float32")
        make = getattr(relax.op.nn, name.removeprefix("relax.nn."))
        known = {key: getattr(call.attrs, key) for key in signature(make).parameters if hasattr(call.attrs, key)}
        return make(*operands, **{**known, "out_dtype": "float32"})

    def _has_half(self, arg: Expr) -> bool:
        """Whether an operand of a move is float16, or is none of its values."""
        known = self.bound(arg)
        if isinstance(known, relax.Tuple):
            return all(map(self._has_half, known.fields))
        return not isinstance(arg.ty, relax.TensorType) or (_is_float(arg) and (isinstance(arg, Var)))

    def _half_of(self, arg: Expr) -> Expr:
        known = self.bound(arg)
        if isinstance(known, relax.Tuple):
            return relax.Tuple([self._half_of(field) for field in known.fields])
        if not isinstance(arg.ty, relax.TensorType):
            return arg
        array: Array | None = constant_array(arg)
        if array is not None:
            return constant_expr(array.astype(np.float16))
        if arg not in self._half:
            self._half[arg] = self._rounded(self.visit_expr(arg))
        return self._half[arg]

    def _rounded(self, value: Expr) -> Expr:
        return self.builder_.emit(relax.op.astype(value, "float16"))

    def _full(self, value: Expr) -> Expr:
        return self.builder_.emit(relax.op.astype(value, "float32"))
