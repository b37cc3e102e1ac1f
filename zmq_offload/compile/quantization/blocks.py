"""A rewriter of Relax functions that looks at several operators at once."""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import relax
from tvm.ir import Expr, Var

from zmq_offload.compile.quantization.integers import array_of
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.simplify import GraphRewriter


class BlockRewriter(GraphRewriter):
    """Knows what the variables of the original block are bound to, and how often each is used."""

    def __init__(self, mod: tvm.IRModule, function: relax.Function) -> None:
        super().__init__(mod)
        self.values: dict[Var, Expr] = {}
        bindings = [b for block in function.body.blocks for b in block.bindings]
        self.uses = Counter(v for b in bindings for v in _used(b))
        self.uses.update(relax.analysis.free_vars(function.body.body))

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        self.enter(block)
        return super().visit_dataflow_block_(block)

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        self.enter(block)
        return super().visit_binding_block_(block)

    def enter(self, block: relax.BindingBlock) -> None:
        # Variables of a dataflow block are not known outside it, so that patterns end there.
        self.values = {b.var: b.value for b in block.bindings if isinstance(b, relax.VarBinding)}

    def original(self, expr: Expr) -> Expr:
        """The expression that a variable of the original block is bound to; any other expression itself."""
        while isinstance(expr, Var) and expr in self.values:
            expr = self.values[expr]
        return expr

    def constant(self, expr: Expr) -> Array | None:
        """The value of a constant of the original block; None for any other expression."""
        return array_of(self.original(expr))

    def emit(self, expr: Expr) -> Expr:
        """Bind an expression to a new variable."""
        return expr if isinstance(expr, Var | tvm.ir.GenericConst) else self.builder_.emit(expr)


def rewrite(mod: tvm.IRModule, rewriter: type[BlockRewriter]) -> tvm.IRModule:
    """Apply a rewriter to each Relax function, except those of other code generators; drop what is unused then."""
    result = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for name, function in relax_functions(mod).items():
        result[name] = relax.analysis.remove_all_unused(rewriter(mod, function).visit_expr(function))
    return result


def relax_functions(mod: tvm.IRModule) -> dict[tvm.ir.GlobalVar, relax.Function]:
    """The Relax functions of a module, except those of other code generators."""
    found = ((name, f) for name, f in mod.functions.items() if isinstance(f, relax.Function))
    return {name: f for name, f in found if not (f.attrs and "Codegen" in f.attrs)}


def _used(binding: relax.Binding) -> list[Var]:
    return list(relax.analysis.free_vars(binding.value))
