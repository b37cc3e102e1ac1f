"""Find the names of a model's tensors again in Relax: importers return all of them as outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tvm
from tvm import ir, relax

from zmq_offload.byoc.codegen import input_specs
from zmq_offload.byoc.graph import Graph
from zmq_offload.compile.onnx.importer import Imported


@contextlib.contextmanager
def closed_on_error(builder: relax.BlockBuilder) -> Iterator[None]:
    """Close the block that a builder's scopes leave open after an error. TVM prints a warning about it otherwise."""
    try:
        yield
    except BaseException:
        builder._end_block()
        raise


def exposed(
    mod: tvm.IRModule, inputs: Sequence[str], outputs: Sequence[str], names: Sequence[str], constants: Sequence[str]
) -> Imported:
    """The import of a module whose `main` returns the model's outputs and then the tensors `names`, as one tuple."""
    main = mod["main"]
    bindings, values = _parts(main)
    tensors: dict[str, relax.Expr] = dict(zip(inputs, main.params, strict=True))
    for name, value in zip([*outputs, *names], values, strict=True):
        tensors.setdefault(name, value)
    graph = Graph(tuple(main.params), tuple(bindings), tensors, tuple(outputs), frozenset(constants))
    return Imported(mod, graph.pruned(), input_specs(list(inputs), [p.ty for p in main.params]))


def only_outputs(mod: tvm.IRModule, outputs: int) -> tvm.IRModule:
    """The module with a `main` that returns the first results only, as a tuple if there are several."""
    main = mod["main"]
    bindings, values = _parts(main)
    result = values[0] if outputs == 1 else relax.Tuple(values[:outputs])
    returned = relax.Var("result", result.ty)
    block = relax.DataflowBlock([*bindings, relax.VarBinding(returned, result)])
    function = relax.Function(list(main.params), relax.SeqExpr([block], returned), returned.ty)
    kept = tvm.IRModule({gv: f for gv, f in mod.functions.items() if gv.name_hint != "main"})
    kept["main"] = function.with_attrs(main.attrs)
    steps = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    return tvm.transform.Sequential(steps)(kept)


def _parts(main: relax.Function) -> tuple[list[relax.Binding], list[relax.Expr]]:
    """The bindings of a function without that of its result, and the values in the result."""
    bindings = [b for block in main.body.blocks for b in block.bindings]
    result = main.body.body
    while bindings and bindings[-1].var == result and isinstance(bindings[-1].value, ir.Var | relax.Tuple):
        result = bindings.pop().value
    return bindings, list(result.fields) if isinstance(result, relax.Tuple) else [result]
