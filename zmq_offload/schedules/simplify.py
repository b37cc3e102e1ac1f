"""The pass before `layout`: fold constants, and replace compositions by plain operators that `layout` can move.

It takes and returns a module of Relax operators. Operators of constants are computed by NumPy; batch normalization
with constant statistics becomes a multiplication and an addition; PrimFuncs that the ONNX importer emits for Clip
become maximum and minimum. Functions of other code generators are left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import Call, Expr, IRModule, Var
from tvm.relax.expr_functor import PyExprMutator, mutator

from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.rewrite import Unsupported, loads
from zmq_offload.schedules.stages import parse
from zmq_offload.schedules.tvm_internals import operator_name

# Operators that NumPy computes exactly as TVM does. TVM's FoldConstant folds the rest; it compiles each case.
_FOLDED: dict[str, Callable[..., Array]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.true_divide,
    "relax.sqrt": np.sqrt,
    "relax.rsqrt": lambda x: 1.0 / np.sqrt(x),
    "relax.negative": np.negative,
    "relax.isnan": np.isnan,
    "relax.where": np.where,
}


def constant_array(expr: Expr) -> Array | None:
    """Return the value of a constant tensor; None for any other expression."""
    if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
        return np.asarray(expr.value.numpy())
    return None


def constant_expr(value: Array) -> Expr:
    """Return a constant tensor."""
    return relax.const(np.ascontiguousarray(value), str(value.dtype))


class GraphRewriter(PyExprMutator):  # type: ignore[misc]
    """A mutator that can look through variables at the expressions they are bound to."""

    builder_: relax.BlockBuilder

    def bound(self, expr: Expr) -> Expr:
        """Return the expression that a variable is bound to; any other expression itself."""
        while isinstance(expr, Var):
            value = self.lookup_binding(expr)
            if value is None:
                return expr
            expr = value
        return expr

    def array(self, expr: Expr) -> Array | None:
        """Return the value of a constant, of a variable that is bound to one, or of 16-bit weights in float32."""
        if (weights := self.half(expr)) is not None:
            return weights.astype(np.float32)
        return constant_array(self.bound(expr))

    def half(self, expr: Expr) -> Array | None:
        """Return the 16-bit weights that `expr` is in float32; None if it is something else."""
        call = self.bound(expr)
        if operator_name(call) != "relax.astype" or str(call.ty.dtype) != "float32":
            return None
        weights = constant_array(self.bound(call.args[0]))
        return weights if weights is not None and str(weights.dtype) in ("float16", "bfloat16") else None

    def operands(self, call: Call) -> Call:
        """Return `call` with its operands rewritten."""
        result = self.visit_expr_post_order(call)
        if not isinstance(result, Call):
            raise TypeError(f"rewriting the operands of a call made a {type(result).__name__}; it must stay a call")
        return result


@mutator
class _Simplify(GraphRewriter):
    def visit_call_(self, call: Call) -> Expr:
        call = self.operands(call)
        name = operator_name(call)
        if name == "relax.call_tir":
            plain = self._plain(call)
            return call if plain is None else plain
        arrays = [self.array(a) for a in call.args]
        if name == "relax.reshape" and arrays and arrays[0] is not None:
            shape = [int(d.value) for d in call.ty.shape.values if isinstance(d, tirx.IntImm)]
            return constant_expr(arrays[0].reshape(shape)) if len(shape) == call.ty.ndim else call
        if name == "relax.permute_dims" and arrays[0] is not None:
            axes = None if call.attrs.axes is None else [int(a) for a in call.attrs.axes]
            return constant_expr(arrays[0].transpose(axes))
        if name in _FOLDED and all(a is not None for a in arrays):
            if name == "relax.divide" and not str(call.ty.dtype).startswith("float"):
                return call  # integer division truncates, and may be by zero
            with np.errstate(all="ignore"):  # a weight of zero or below gives infinity or NaN, not a warning
                return constant_expr(np.asarray(_FOLDED[name](*arrays), dtype=str(call.ty.dtype)))
        return call

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> Expr:
        item = self.visit_expr_post_order(item)
        if isinstance(item, relax.TupleGetItem) and item.index == 0:
            call = self.bound(item.tuple_value)
            if operator_name(call) == "relax.nn.batch_norm":
                normalized = self._normalized(call)
                return item if normalized is None else normalized
        return item

    def _normalized(self, call: Call) -> Expr | None:
        """Return batch normalization as a multiplication by and an addition of constants."""
        arrays = [self.array(a) for a in call.args[1:5]]
        if any(a is None for a in arrays) or call.attrs.training:
            return None
        gamma, beta, mean, variance = (np.asarray(a, "float64") for a in arrays)
        shape = [1] * call.args[0].ty.ndim
        shape[int(call.attrs.axis)] = -1
        dtype = str(call.args[0].ty.dtype)
        with np.errstate(all="ignore"):  # a variance of zero without an epsilon gives infinity, as it does unfolded
            scale = (gamma if call.attrs.scale else 1.0) / np.sqrt(variance + float(call.attrs.epsilon))
            shift = (beta if call.attrs.center else 0.0) - mean * scale
            factor, offset = (constant_expr(v.reshape(shape).astype(dtype)) for v in (scale, shift))
        return relax.op.add(self.builder_.emit(relax.op.multiply(call.args[0], factor)), offset)

    def _plain(self, call: Call) -> Expr | None:
        """Return the maximum or minimum that a PrimFunc computes: the importer emits them for ONNX's Clip."""
        func = self.builder_.get()[call.args[0]]
        fields = call.args[1].fields if hasattr(call.args[1], "fields") else []
        # Unknown extents follow the tensors.
        if len([field for field in fields if isinstance(field.ty, relax.TensorType)]) not in (1, 2):
            return None
        try:
            stages = parse(func).stages
        except Unsupported:
            return None
        value = stages[0].value
        if len(stages) != 1 or stages[0].reduce_axes or type(value) not in (tirx.Max, tirx.Min):
            return None
        operands = [self._operand(o, stages[0].axes, func, list(fields)) for o in (value.a, value.b)]
        if any(o is None for o in operands):
            return None
        return (relax.op.maximum if isinstance(value, tirx.Max) else relax.op.minimum)(*operands)

    def _operand(self, value: Expr, axes: list[Var], func: tirx.PrimFunc, args: list[Expr]) -> Expr | None:
        if isinstance(value, tirx.FloatImm):
            return relax.const(float(value.value), str(value.ty))
        if len(loads(value)) != 1 or not isinstance(value, tvm.ir.TensorLoad):
            return None
        position = next((i for i, p in enumerate(func.params) if p.same_as(value.source)), len(args))
        identity = len(value.indices) == len(axes) and all(
            i.same_as(a) for i, a in zip(value.indices, axes, strict=True)
        )
        return args[position] if position < len(args) and (identity or not value.indices) else None


def rewritten(mod: IRModule, rewriter: GraphRewriter) -> IRModule:
    """Apply a rewriter to the Relax functions of `mod`, except those of other code generators."""
    for name, func in mod.functions.items():
        if isinstance(func, relax.Function) and not (func.attrs and "Codegen" in func.attrs):
            rewriter.builder_.update_func(name, rewriter.visit_expr(func))
    return rewriter.builder_.get()


def simplify(mod: IRModule) -> IRModule:
    """Return `mod` simplified. Dead code elimination must follow."""
    return rewritten(mod, _Simplify(mod))
