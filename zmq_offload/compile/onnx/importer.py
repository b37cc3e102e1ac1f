"""Import an ONNX file into Relax and keep the ONNX names of its tensors."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import tvm
from tvm import ir, relax

from zmq_offload.byoc.codegen import input_specs, tensor_spec, with_maximums, with_multiples
from zmq_offload.byoc.graph import Graph
from zmq_offload.byoc.parameters import LARGEST, maximums_of, with_symbols
from zmq_offload.compile.half import without_bfloat16
from zmq_offload.compile.interrupt import interruptible
from zmq_offload.compile.onnx.file import read_onnx as read_onnx
from zmq_offload.compile.onnx.shapes import Dim, multiple_of, set_input_shapes
from zmq_offload.compile.operators.constants import fold, without_data
from zmq_offload.compile.operators.graph import import_graph
from zmq_offload.compile.operators.loops import unrolled
from zmq_offload.compile.operators.refusal import reason
from zmq_offload.compile.operators.rewrite import inlined
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.protocol.tensors import ANY, TensorSpec, datatype_of


@dataclass(frozen=True)
class Imported:
    """A model in Relax: the module with its `main`, its graph by ONNX tensor names, and its inputs."""

    mod: tvm.IRModule
    graph: Graph
    inputs: tuple[TensorSpec, ...]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor_spec(name, self.graph.tensors[name].ty) for name in self.graph.outputs)


def import_onnx(
    path: str | os.PathLike[str], inputs: Mapping[str, Sequence[Dim]], tensors: Iterable[str] = ()
) -> Imported:
    """Read an ONNX model, and import it as `import_model` does. Raises InvalidArgument for a file that is not ONNX."""
    return import_model(read_onnx(path), inputs, tensors)


def import_model(model: onnx.ModelProto, inputs: Mapping[str, Sequence[Dim]], tensors: Iterable[str] = ()) -> Imported:
    """Simplify a model for the given input shapes, and import it into Relax. The model is changed.

    `inputs` gives the shape of each input whose shape the file leaves open. Simplifying keeps the tensors named in
    `tensors`, which it might fold or fuse away otherwise.

    Raises InvalidArgument for shapes that do not fit the model, and operators that TVM cannot import.
    """
    set_input_shapes(model, inputs)
    tensors = list(tensors)
    constants = {o for node in model.graph.node for o in node.output} | {w.name for w in model.graph.initializer}
    slim = simplify(model, tensors)
    names = list(dict.fromkeys(o for node in slim.graph.node for o in node.output if o))
    outputs = [o.name for o in slim.graph.output]
    _expose(slim, [n for n in names if n not in outputs])
    constants |= {w.name for w in slim.graph.initializer}
    mod = _to_relax(slim, outputs)
    largest = dict(mod.attrs[LARGEST])
    return _named(mod, slim, outputs, constants, largest)


def import_uncut(path: str | os.PathLike[str], inputs: Mapping[str, Sequence[Dim]]) -> tvm.IRModule:
    """Read an ONNX model that is not cut, and import it as `import_whole` does."""
    return import_whole(read_onnx(path), inputs)


def import_whole(model: onnx.ModelProto, inputs: Mapping[str, Sequence[Dim]]) -> tvm.IRModule:
    """Import a model that is not cut, as `import_model` does, without names for tensors inside it."""
    set_input_shapes(model, inputs)
    mod = _to_relax(simplify(model)).without_attr(LARGEST)
    main = with_symbols(mod["main"])
    if main.same_as(mod["main"]):
        return mod
    mod["main"] = main
    return relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(mod))


def model_inputs(model: onnx.ModelProto, inputs: Mapping[str, Sequence[Dim]]) -> tuple[TensorSpec, ...]:
    """The inputs of an ONNX model with the shapes from `inputs`. Raises InvalidArgument."""
    model = without_data(model)
    set_input_shapes(model, inputs)
    weights = {w.name for w in model.graph.initializer}
    found = []
    for info in model.graph.input:
        if info.name not in weights:
            kind = info.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            datatype = "FP32" if str(dtype) == "bfloat16" else datatype_of(dtype)  # as `without_bfloat16` makes it
            spec = TensorSpec(info.name, datatype, tuple(d.dim_value or ANY for d in kind.shape.dim))
            found.append(with_multiples(spec, [multiple_of(d.dim_param)[0] for d in kind.shape.dim]))
    return tuple(found)


def simplify(model: onnx.ModelProto, tensors: Iterable[str] = ()) -> onnx.ModelProto:
    """Fold constants, in particular shape computations, which TVM's importer cannot leave to run time.

    Tensors named in `tensors` are kept, where the model has them. The given model is changed.

    Raises InvalidArgument for loops that cannot be written out, and for a model that breaks ONNX's rules.
    """
    with _faults_refused():
        simple = fold(inlined(model), tensors)
        # A loop in a loop has a known number of rounds when the outer one is written out and folded.
        while (flat := unrolled(simple)) is not None:
            simple = fold(inlined(flat), tensors)
        return simple


def _expose(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Add tensors of the graph to its outputs: TVM's importer keeps track of outputs only."""
    known = {v.name: v for v in model.graph.value_info}
    model.graph.output.extend(known.get(name) or onnx.ValueInfoProto(name=name) for name in names)


def _to_relax(model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> tvm.IRModule:
    with _faults_refused(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), interruptible():
        # The importer prints the operator that it fails on, and warns about names and shapes that it changes.
        warnings.simplefilter("ignore")
        return without_bfloat16(import_graph(model, outputs))


@contextlib.contextmanager
def _faults_refused() -> Iterator[None]:
    """Raises InvalidArgument for any error: a file can break every rule of ONNX, and TVM knows few of them."""
    try:
        yield
    except OffloadError:
        raise
    except Exception as error:
        why = reason(error)
        raise InvalidArgument(f"cannot import the model: {why}; export it with another opset or exporter") from error


def _named(
    mod: tvm.IRModule,
    model: onnx.ModelProto,
    outputs: Sequence[str],
    constants: set[str],
    largest: Mapping[str, int],
) -> Imported:
    main = mod["main"]
    bindings = [b for block in main.body.blocks for b in block.bindings]
    dataflow = all(isinstance(block, relax.DataflowBlock) for block in main.body.blocks)
    result = main.body.body
    if bindings and bindings[-1].var == result and isinstance(bindings[-1].value, ir.Var | relax.Tuple):
        result = bindings.pop().value
    names = [o.name for o in model.graph.output]
    values = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    # Initializers are not inputs. The rest of graph.input is in the order of the parameters.
    weights = {w.name for w in model.graph.initializer}
    params = [i.name for i in model.graph.input if i.name not in weights]
    tensors: dict[str, relax.Expr] = dict(zip(params, main.params, strict=True))
    tensors.update({n: v for n, v in zip(names, values, strict=True) if n not in tensors})
    graph = Graph(
        tuple(main.params), tuple(bindings), tensors, tuple(outputs), frozenset(constants - set(tensors)), dataflow
    )
    types = [p.ty for p in main.params]
    bounds = zip(input_specs(params, types), maximums_of(types, largest), strict=True)
    return Imported(mod, graph.pruned(), tuple(with_maximums(spec, most) for spec, most in bounds))
