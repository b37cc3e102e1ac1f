"""Tensors that a region needs besides its cuts, and that are cheap functions of the model's inputs: masks, for example.

Each block of a transformer reads the mask. So no tensor alone separates one block from the next, although the mask is
small and made of an input by a few element-wise operators. A region takes such tensors along: either they are sent, or
the inputs that they are made of are, and both sides compute them. Nobody asks for that, so it is done for integers and
booleans only: an image or a sound leaves the device only where a user cuts at it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tvm import ir, relax, tirx

from zmq_offload.byoc.graph import Graph

MOST_CONSTANT_BYTES = 1 << 16
"""What is computed on both sides reads at most so many bytes of constants. Larger ones are weights, and stay on one
side."""

_PRODUCTS = frozenset(
    f"relax.{name}"
    for name in (
        *("matmul", "einsum", "linear", "call_tir", "call_dps_packed", "take"),
        *(f"nn.conv{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_transpose")),
        *("nn.attention", "nn.attention_bias", "nn.attention_var_len"),
    )
)
"""Operators that are not cheap. A PrimFunc may be anything, and what a table has for an id is a model's first layer."""


def cheap(graph: Graph, params: Iterable[ir.Var] | None = None) -> set[ir.Var]:
    """The inputs, or some of them, and the variables that are computed from them by cheap operators."""
    found, varying = set(graph.params if params is None else params), graph.from_inputs()
    for step in graph.steps:
        if step.var not in varying:  # a constant, though one that is not folded yet
            found.add(step.var)
            continue
        value = step.value
        product = isinstance(value, ir.Call) and getattr(value.op, "name", "relax.call_tir") in _PRODUCTS
        if not product and all(v in found for v in graph.used(step.var)):
            found.add(step.var)
    return found


def carried(graph: Graph, cuts: Iterable[ir.Var], untils: Iterable[ir.Var]) -> list[ir.Var] | None:
    """The variables that a region from `cuts` to `untils` takes along, in graph order; none if it needs only `cuts`.

    Of the tensors themselves and the inputs that they are made of, those of fewer bytes. None if something else reaches
    the region around its cuts.
    """
    cut = set(cuts)
    inside = graph.upstream(untils, stop=cut)
    around = _around(graph, cut, inside)
    if not around:
        return []
    if not around <= cheap(graph, maskable(graph)):
        return None
    joins = {v for var in inside - around for v in graph.used(var) if v in around}
    joins |= {v for v in untils if v in around}
    made = graph.upstream(joins)
    inputs = [p for p in graph.params if p in made]
    constants = sum(constant_bytes(b.value) for b in graph.steps if b.var in made)
    tensors = [v for v in (*graph.params, *(b.var for b in graph.steps)) if v in joins]
    if constants <= MOST_CONSTANT_BYTES and tensor_bytes(inputs) < tensor_bytes(tensors):
        return inputs
    return tensors if all(graph.named(v) and isinstance(v.ty, relax.TensorType) for v in tensors) else inputs


def maskable(graph: Graph) -> list[ir.Var]:
    """The inputs of integers and booleans."""
    return [p for p in graph.params if not str(p.ty.dtype).startswith(("float", "bfloat"))]


def both_sides(graph: Graph, cuts: Iterable[ir.Var], inside: set[ir.Var]) -> set[ir.Var]:
    """Variables of a region that the device computes, too, where it needs them: cheap functions of inputs that are
    sent."""
    easy, varying = cheap(graph), graph.from_inputs()
    found = {v for v in cuts if v in graph.params}
    for step in graph.steps:
        used = [v for v in graph.used(step.var) if v in varying]
        if step.var in inside and step.var in easy and used and all(v in found for v in used):
            found.add(step.var)
    return found & inside


def _around(graph: Graph, cuts: set[ir.Var], inside: set[ir.Var]) -> set[ir.Var]:
    """The inputs and what a region computes of them without its cuts."""
    found = {p for p in graph.params if p in inside}
    if not found:
        return found
    later = set(cuts)
    for step in graph.steps:
        used = graph.used(step.var)
        if any(v in later for v in used):
            later.add(step.var)
        elif step.var in inside and any(v in found for v in used):
            found.add(step.var)
    return found


def element_bytes(ty: ir.Type) -> int:
    """The size of one element of a tensor; a bool has a byte."""
    return -(-int(ty.dtype.dtype.bits) // 8)


def constant_bytes(value: relax.Expr) -> int:
    """The size of the constants in an expression."""
    total = 0

    def visit(expr: relax.Expr) -> None:
        nonlocal total
        if isinstance(expr, ir.GenericConst):
            total += math.prod(expr.value.shape) * element_bytes(expr.ty)  # numpy() would copy it

    relax.analysis.post_order_visit(value, visit)
    return total


def tensor_bytes(variables: Iterable[ir.Var]) -> int:
    """The size of tensors; symbolic extents count as 1."""
    total = 0
    for var in variables:
        dims = var.ty.shape if isinstance(var.ty, relax.TensorType) and var.ty.shape is not None else ()
        extents = [int(d) if isinstance(d, tirx.IntImm) else 1 for d in dims]
        total += math.prod(extents) * element_bytes(var.ty)
    return total
