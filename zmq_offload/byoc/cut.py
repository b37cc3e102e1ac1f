"""Mark a region of a Relax module by the names of its variables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import tvm
from tvm import ir, relax

from zmq_offload.byoc.graph import Graph
from zmq_offload.byoc.outline import outline
from zmq_offload.errors import InvalidArgument


def cut_module(mod: tvm.IRModule, cut: str | Sequence[str], until: str | Sequence[str] | None = None) -> tvm.IRModule:
    """Split `main` of a module at named variables.

    Parameters
    ----------
    mod : tvm.IRModule
        A module with a Relax function `main` without branches. Weights are constants (`relax.transform.BindParams`).
    cut : str or sequence of str
        Variables at which the region begins. A variable has the name that it was given, as in
        `builder.emit(value, "features")` or in TVMScript; it must be unique.
    until : str or sequence of str, optional
        Variables at which the region ends. Default: all results that depend on `cut`.

    Returns
    -------
    tvm.IRModule
        A module for `zmq_offload.compile.compile_module`: `main` calls the region as one function.

    Raises
    ------
    InvalidArgument
        The module has no `main`, or `main` has branches; a name does not exist or is not unique; or the variables do
        not enclose a region, for example because an input of the model reaches it around the cut.

    Examples
    --------
    >>> from zmq_offload.compile import compile_module, cut_module
    >>> compile_module(cut_module(mod, "features"), name="heads", output="dist")  # doctest: +SKIP
    """
    cut = [cut] if isinstance(cut, str) else cut
    until = [until] if isinstance(until, str) else until
    tidied = relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(mod))
    return outline(tidied, module_graph(tidied, [*cut, *(until or ())]), cut, until)


def module_graph(mod: tvm.IRModule, asked: Sequence[str] = ()) -> Graph:
    """Return the `main` of a module as a graph of its variables. Names in `asked` must be unique."""
    if not any(gv.name_hint == "main" for gv in mod.get_global_vars()):
        raise InvalidArgument("the module has no function 'main'; name the one to split 'main'")
    main = mod["main"]
    bindings = [b for block in main.body.blocks for b in block.bindings]
    if any(isinstance(b.value, relax.If) for b in bindings):
        raise InvalidArgument("the module's 'main' has branches (If); only one without can be cut by names")
    dataflow = all(isinstance(block, relax.DataflowBlock) for block in main.body.blocks)
    result = main.body.body
    if bindings and bindings[-1].var == result and isinstance(bindings[-1].value, ir.Var | relax.Tuple):
        result = bindings.pop().value
    results = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    variables = [*main.params, *(b.var for b in bindings)]
    often = Counter(str(v.name) for v in variables)
    for name in asked:
        if often[name] > 1:
            raise InvalidArgument(f"the module has {often[name]} variables {name!r}; rename the others")
    tensors = {str(v.name): v for v in variables if often[str(v.name)] == 1}
    known = {var: name for name, var in tensors.items()}
    outputs = []
    for at, value in enumerate(results):
        own = known.get(value) if isinstance(value, ir.Var) else None
        # A result without a unique name gets one that no variable can have.
        outputs.append(own or f"output {at}")
        tensors.setdefault(outputs[-1], value)
    return Graph(tuple(main.params), tuple(bindings), tensors, tuple(outputs), dataflow=dataflow).pruned()
