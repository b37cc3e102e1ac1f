"""Join modules into one, whose functions share kernels and weights.

TVM's passes make one function of equal kernels, and one constant of equal weights, however many functions of a module
have them.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from zmq_offload.byoc.order import topological_order
from zmq_offload.errors import InvalidArgument

MAIN = "main"
"""The function that users of a library call, where it has one only."""

ENTRY = "zmq_offload_entry"
"""Attribute of the functions that users of a library call, where it has several."""

LIBRARIES = "external_mods"
"""Attribute of a module with libraries to link to it, such as those of `RunCodegen`."""


def joined(modules: Mapping[str, tvm.IRModule]) -> tvm.IRModule:
    """One module with the `main` of each module, by the name of an entry, and with what they call.

    Raises InvalidArgument for modules with functions that another BYOC backend has compiled.
    """
    builder = relax.BlockBuilder()
    for entry, mod in modules.items():
        if LIBRARIES in (mod.attrs or {}):
            raise InvalidArgument("the module has functions of other BYOC backends; give it one cut, with cut=")
        places: dict[str, ir.GlobalVar] = {}
        for name, function in _callees_first(mod):
            moved = _moved(builder, function, places)
            if name == MAIN:
                builder.add_func(moved.with_attrs({"global_symbol": entry, ENTRY: True}), entry)
            else:  # to the place of an equal function, or to a free name
                places[name] = builder.add_func(moved.without_attr("global_symbol"), name)
    done = builder.get()
    attrs = next(iter(modules.values())).attrs
    return done if attrs is None else done.with_attrs(attrs)


def is_entry(gv: ir.GlobalVar, function: ir.BaseFunc) -> bool:
    """Whether users of the library call a function."""
    return str(gv.name_hint) == MAIN or ENTRY in (function.attrs or {})


def _callees_first(mod: tvm.IRModule) -> list[tuple[str, ir.BaseFunc]]:
    functions = [(str(gv.name_hint), f) for gv, f in mod.functions.items()]
    numbers = {name: number for number, (name, _) in enumerate(functions)}
    needs = [
        {numbers[str(gv.name_hint)] for gv in relax.analysis.all_global_vars(f)} - {number}
        if isinstance(f, relax.Function)
        else set()
        for number, (_, f) in enumerate(functions)
    ]
    return [functions[i] for i in topological_order(needs, range(len(functions)))]


def _moved(builder: relax.BlockBuilder, function: ir.BaseFunc, places: Mapping[str, ir.GlobalVar]) -> ir.BaseFunc:
    """The function with its calls at their new places."""
    if not isinstance(function, relax.Function):
        return function
    changed = _Moved(builder.get(), places).visit_expr(function) if places else function
    # TVM's passes find variables by their identity, so each function has its own.
    return relax.utils.copy_with_new_vars(changed)


@mutator
class _Moved(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    def __init__(self, mod: tvm.IRModule, places: Mapping[str, ir.GlobalVar]) -> None:
        super().__init__(mod)
        self._places = places

    def visit_global_var_(self, gv: ir.GlobalVar) -> ir.GlobalVar:
        return self._places.get(str(gv.name_hint), gv)
