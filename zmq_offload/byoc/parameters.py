"""Functions whose parameters have sums as extents, `8*H`: TVM finds only the values of symbols that stand alone.

Such an extent becomes a symbol of its own, `h`. In the function `H` is `h // 8`, and the run checks that `h` is `8*H`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import ir, relax, tirx

from zmq_offload.byoc.extents import BINARY, Extents, expression
from zmq_offload.protocol.tensors import ANY

Symbols = Mapping[tirx.Var, ir.Expr]


MULTIPLES = "zmq_offload_multiples"
"""Attribute of a function: for each extent of each parameter, what it has to be a multiple of."""


MAXIMUMS = "zmq_offload_maximums"
"""Attribute of a function: for each extent of each parameter, the largest that it may be, or `ANY`."""

LARGEST = "zmq_offload_largest"
"""Attribute of a module: the largest values of symbols, by their names."""


def maximums_of(types: Sequence[ir.Type], largest: Mapping[str, int]) -> list[list[int]]:
    """For each extent of each type, the largest that it may be, where that of its symbol is known; `ANY` elsewhere."""
    extents = Extents()
    found = []
    for ty in types:
        sums = [extents.linear(dim) for dim in _dims(ty)]
        known = [s if s is not None and str(s[1].name) in largest else None for s in sums]
        found.append([ANY if s is None else s[0] * int(largest[str(s[1].name)]) + s[2] for s in known])
    return found


def multiples_of(types: Sequence[ir.Type]) -> list[list[int]]:
    """For each extent of each type, the number that it is a multiple of."""
    extents = Extents()
    found = []
    for ty in types:
        sums = [extents.linear(dim) for dim in _dims(ty)]
        found.append([s[0] if s is not None and s[2] == 0 else 1 for s in sums])
    return found


def told_by(inputs: Sequence[ir.Type], result: ir.Type) -> bool:
    """Whether the shapes of the inputs tell that of a result; others are known only after the run."""
    known = {symbol for ty in inputs for symbol in relax.analysis.tir_vars_in_type(ty)}
    return all(symbol in known for symbol in relax.analysis.tir_vars_in_type(result))


def with_symbols(function: relax.Function) -> relax.Function:
    """The function with a symbol for each extent of its parameters that is a sum; others stay as they are.

    A symbol that no sum determines stays free.
    """
    extents = Extents()
    dims = [dim for param in function.params for dim in _dims(param.ty)]
    known = {str(dim.name) for dim in dims if isinstance(dim, tirx.Var)}
    values: dict[tirx.Var, ir.Expr] = {}
    symbols: list[tuple[ir.Expr, tirx.Var]] = []
    for dim in dims:
        found = extents.linear(dim)
        if found is None or isinstance(dim, tirx.Var) or found[1] in values or _is_one_of(found[1], dims):
            continue
        multiple, symbol, rest = found
        whole = _unused(f"{symbol.name}_{multiple}", known)
        symbols.append((dim, whole))
        values[symbol] = expression(extents.normal(tirx.FloorDiv(whole - rest, tirx.IntImm("int64", multiple))))
    if not values:
        return function

    def bare(dim: ir.Expr) -> ir.Expr:
        return next((whole for total, whole in symbols if extents.equal(dim, total)), _replaced(dim, values))

    params: list[ir.Var] = []
    before: list[relax.Binding] = []
    names = list(values)
    sizes = relax.ShapeExpr([values[n] for n in names])
    # TVM computes no extent that only the value of a MatchCast has, so the value is a variable. And it replaces symbols
    # of which a type tells the value, in some places and not in others, so the type of that variable tells none.
    whole_shape = relax.Var("sizes", sizes.ty)
    opaque = relax.Var("opaque", relax.ShapeType(ndim=len(names)))
    before.append(relax.VarBinding(whole_shape, sizes))
    before.append(relax.MatchCast(opaque, whole_shape, opaque.ty))
    before.append(relax.MatchCast(relax.Var("symbols", relax.ShapeType(names)), opaque, relax.ShapeType(names)))
    for param in function.params:
        if all(isinstance(dim, tirx.Var | tirx.IntImm) for dim in _dims(param.ty)):
            params.append(param)
            continue
        ty = relax.TensorType([bare(dim) for dim in _dims(param.ty)], param.ty.dtype)
        params.append(relax.Var(param.name, ty))
        before.append(relax.MatchCast(param, params[-1], param.ty))
    end = function.body.body
    result = _type(end.ty, values)
    returned = relax.Var("returned", result)
    after = relax.MatchCast(returned, end, result)
    blocks = [relax.BindingBlock(before), *function.body.blocks, relax.BindingBlock([after])]
    body = relax.SeqExpr(blocks, returned)
    multiples = multiples_of([param.ty for param in function.params])
    return relax.Function(params, body, result, function.is_pure, function.attrs).with_attr(MULTIPLES, multiples)


def _dims(ty: ir.Type) -> list[ir.Expr]:
    shaped = isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr)
    return list(ty.shape.values) if shaped else []


def _is_one_of(symbol: tirx.Var, dims: Sequence[ir.Expr]) -> bool:
    return any(symbol.same_as(dim) for dim in dims)


def _unused(name: str, known: set[str]) -> tirx.Var:
    while name in known:
        name += "_"
    known.add(name)
    return tirx.Var(name, "int64")


def _type(ty: ir.Type, values: Symbols) -> ir.Type:
    if isinstance(ty, relax.TupleType):
        return relax.TupleType([_type(field, values) for field in ty.fields])
    if _dims(ty):
        return relax.TensorType([_replaced(dim, values) for dim in _dims(ty)], ty.dtype)
    return ty


def _replaced(dim: ir.Expr, values: Symbols) -> ir.Expr:
    if isinstance(dim, tirx.Var):
        return next((value for symbol, value in values.items() if symbol.same_as(dim)), dim)
    if isinstance(dim, BINARY):
        return type(dim)(_replaced(dim.a, values), _replaced(dim.b, values))
    return dim
