"""Input shapes of an exported program: those that it has, and the numbers that the user gives for symbolic extents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.models.base import Shapes
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import ANY, TensorSpec, datatype_of

Fixed: TypeAlias = dict[str, int | str]
"""For symbolic extents by name, their numbers, or the extents that they are equal to."""


def input_nodes(program: Any) -> list[Any]:
    """The program's inputs, in order. Raises InvalidArgument for one that is not a tensor."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            name = spec.arg.name
            if not hasattr(placeholders.get(name) and placeholders[name].meta.get("val"), "shape"):
                raise InvalidArgument(
                    f"input {name!r} of the program is not a tensor; export a module whose inputs are tensors, with "
                    "other arguments as constants (functools.partial)"
                )
            found.append(placeholders[name])
    return found


def fixed_extents(program: Any, given: Shapes) -> Fixed:
    """What `given` says of the program's symbolic extents: numbers, or one name for several that are equal.

    Raises InvalidArgument for shapes that do not fit.
    """
    nodes = {node.name: node for node in input_nodes(program)}
    fixed: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for name, dims in given.items():
        if name not in nodes:
            raise InvalidArgument(
                f"--input: the model has no input {name!r}; it has {', '.join(map(_described, nodes.values()))}"
                f"{did_you_mean(name, nodes)}"
            )
        shape = nodes[name].meta["val"].shape
        if len(dims) != len(shape):
            raise InvalidArgument(
                f"--input {name!r} has {len(dims)} dimensions, the model's is {_described(nodes[name])}"
            )
        for axis, (dim, own) in enumerate(zip(dims, shape, strict=True)):
            _fix(fixed, program, f"--input {name!r}: dimension {axis}", dim, own)
            if isinstance(dim, str) and dim.isidentifier() and own.node.expr.is_Symbol:
                names.setdefault(dim, []).append(str(own.node.expr))
    return {**_equal(names, fixed), **fixed}


def _equal(names: Mapping[str, Sequence[str]], fixed: Mapping[str, int]) -> Fixed:
    """What symbols with one name become: the first of them, or its number."""
    found: Fixed = {}
    for symbols in names.values():
        first, *others = dict.fromkeys(symbols)
        for other in others:
            found[other] = fixed.get(first, first)
    return found


def _fix(fixed: dict[str, int], program: Any, where: str, dim: Dim, own: Any) -> None:
    if isinstance(own, int):
        if isinstance(dim, str):
            raise InvalidArgument(
                f"{where} is {own} in the program, not symbolic; export it with dynamic_shapes, such as "
                "{name: {axis: torch.export.Dim.DYNAMIC}}"
            )
        if int(dim) != own:
            raise InvalidArgument(f"{where} is {own} in the program, not {dim}; export it with dynamic_shapes")
        return
    if isinstance(dim, str):
        return
    symbol = own.node.expr
    if not symbol.is_Symbol:
        raise InvalidArgument(f"{where} is {symbol}; give a number for the dimension that is {symbol.free_symbols}")
    bounds = program.range_constraints.get(symbol)
    if bounds is not None and not int(bounds.lower) <= int(dim) <= bounds.upper:
        raise InvalidArgument(f"{where} is {dim}; the program takes {int(bounds.lower)} to {bounds.upper}")
    if fixed.setdefault(str(symbol), int(dim)) != int(dim):
        raise InvalidArgument(
            f"{where} is {dim}; the program has one extent here and where {fixed[str(symbol)]} is given"
        )


def _described(node: Any) -> str:
    return f"{node.name!r} [{','.join(map(str, node.meta['val'].shape))}]"


def specs_of(program: Any, fixed: Fixed) -> tuple[TensorSpec, ...]:
    """The signature of the inputs."""
    return tuple(
        TensorSpec(node.name, _datatype(node), tuple(_extent(size, fixed) for size in node.meta["val"].shape))
        for node in input_nodes(program)
    )


def _datatype(node: Any) -> str:
    import numpy as np

    name = str(node.meta["val"].dtype).removeprefix("torch.")
    if name == "bfloat16":  # the import makes float32 of it
        return "FP32"
    try:
        return datatype_of(np.dtype(name))
    except TypeError:
        raise InvalidArgument(f"input {node.name!r} is of {name}, which messages cannot carry; use float32") from None


def _extent(size: Any, fixed: Fixed) -> int:
    found = size if isinstance(size, int) else fixed.get(str(size.node.expr), ANY)
    return found if isinstance(found, int) else ANY


def number(size: Any, extents: Mapping[str, int]) -> int:
    """A size with numbers for its symbols."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({symbol: extents[str(symbol)] for symbol in expression.free_symbols}))


def random_extents(program: Any, fixed: Fixed, usual: Sequence[int]) -> dict[str, int]:
    """A number for each symbol: the `usual` one of dimension 0, or of others, within the symbol's bounds."""
    chosen = {symbol: to for symbol, to in fixed.items() if isinstance(to, int)}
    for node in input_nodes(program):
        for axis, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, int) and size.node.expr.is_Symbol:
                bounds = program.range_constraints.get(size.node.expr)
                number = usual[axis > 0]
                if bounds is not None:
                    number = int(min(max(number, bounds.lower), bounds.upper))
                chosen.setdefault(str(size.node.expr), number)
    return chosen | {symbol: chosen[to] for symbol, to in fixed.items() if isinstance(to, str)}
