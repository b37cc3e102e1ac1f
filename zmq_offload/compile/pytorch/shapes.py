"""Turn torch's symbolic sizes into TVM's."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import ir, tirx

from zmq_offload.errors import InvalidArgument

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "FloorDiv": tirx.floordiv,
    "CleanDiv": tirx.floordiv,
    "Mod": tirx.floormod,
    "PythonMod": tirx.floormod,
    "Max": tirx.max,
    "Min": tirx.min,
}
"""Functions of two sizes, by the names of torch's and SymPy's classes. Those of more operands are applied in turn."""


def size_of(size: Any, symbols: Mapping[str, tirx.Var]) -> ir.Expr | int:
    """A size as TVM's expression: a number, or an expression of `symbols`.

    Raises InvalidArgument for a size that the inputs' shapes do not determine.
    """
    expression = getattr(getattr(size, "node", None), "expr", None)
    return int(size) if expression is None else _translated(expression, symbols)


def sizes_of(shape: Sequence[Any], symbols: Mapping[str, tirx.Var]) -> list[ir.Expr | int]:
    """The sizes of a shape, as `size_of` gives them."""
    return [size_of(size, symbols) for size in shape]


def _translated(expression: Any, symbols: Mapping[str, tirx.Var]) -> ir.Expr | int:
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        found = symbols.get(str(expression))
        if found is None:
            raise InvalidArgument(
                f"the program has the size {expression}, which depends on values, not on the inputs' shapes; export it "
                "without operators such as nonzero, or keep them outside of the model"
            )
        return found
    apply = _OPERATORS.get(type(expression).__name__)
    operands = [_translated(operand, symbols) for operand in expression.args]
    if type(expression).__name__ == "Pow" and isinstance(operands[1], int) and operands[1] > 0:
        apply, operands = operator.mul, operands[:1] * operands[1]
    if apply is None:
        raise InvalidArgument(
            f"the program has the size {expression}, which TVM cannot express; export it with numbers"
        )
    return functools.reduce(apply, [tirx.IntImm("int64", o) if isinstance(o, int) else o for o in operands])
