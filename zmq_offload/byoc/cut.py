"""Cut a Relax module by the names of its variables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import tvm
from tvm import ir, relax

from zmq_offload.byoc.graph import Graph
from zmq_offload.byoc.outline import outline
from zmq_offload.errors import InvalidArgument


def cut_module(mod: tvm.IRModule, cut: str | Sequence[str], until: str | Sequence[str] | None = None) -> tvm.IRModule:
    """Split `main` at the variables that `cut` names, and end the offloaded part at those of `until` (default: the
    results that depend on `cut`).

    A variable's name is the one that it was given when it was made, `builder.emit(value, "features")`, or that stands
    in TVMScript; it must be the only one of that name. Returns a module for `zmq_offload.compile.compile_module`.

    Raises InvalidArgument for a module without a `main`, a `main` with branches, names that are not there or not
    unique, and for tensors that do not enclose a part of the graph.
    """
    cut = [cut] if isinstance(cut, str) else cut
    until = [until] if isinstance(until, str) else until
    tidied = relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(mod))
    return outline(tidied, module_graph(tidied, [*cut, *(until or ())]), cut, until)


def module_graph(mod: tvm.IRModule, asked: Sequence[str] = ()) -> Graph:
    """The `main` of a module as a graph by its variables' names. `asked` are names that must be unique in it."""
    if not any(gv.name_hint == "main" for gv in mod.get_global_vars()):
        raise InvalidArgument("the module has no function 'main'")
    main = mod["main"]
    bindings = [b for block in main.body.blocks for b in block.bindings]
    if any(isinstance(b.value, relax.If) for b in bindings):
        raise InvalidArgument("the module's 'main' has branches (If); it cannot be cut by a tensor's name")
    dataflow = all(isinstance(block, relax.DataflowBlock) for block in main.body.blocks)
    result = main.body.body
    if bindings and bindings[-1].var == result and isinstance(bindings[-1].value, ir.Var | relax.Tuple):
        result = bindings.pop().value
    results = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    variables = [*main.params, *(b.var for b in bindings)]
    often = Counter(str(v.name) for v in variables)
    for name in asked:
        if often[name] > 1:
            raise InvalidArgument(f"the module has {often[name]} variables {name!r}; give the one that is meant a name")
    tensors = {str(v.name): v for v in variables if often[str(v.name)] == 1}
    known = {var: name for name, var in tensors.items()}
    outputs = []
    for at, value in enumerate(results):
        own = known.get(value) if isinstance(value, ir.Var) else None
        # One that has no name of its own gets one that no variable can have.
        outputs.append(own or f"output {at}")
        tensors.setdefault(outputs[-1], value)
    return Graph(tuple(main.params), tuple(bindings), tensors, tuple(outputs), dataflow=dataflow).pruned()
