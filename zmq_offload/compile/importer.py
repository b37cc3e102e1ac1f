"""ONNX file -> Relax, with the ONNX names of the tensors kept."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import onnx
import onnxslim
import tvm
from tvm import ir, relax

from zmq_offload.byoc.codegen import input_specs, tensor_spec
from zmq_offload.byoc.graph import Graph
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.interrupt import interruptible
from zmq_offload.compile.onnx_file import read_onnx as read_onnx
from zmq_offload.compile.operators.graph import import_graph, opset_of, unknown_operators
from zmq_offload.compile.operators.rewrite import inlined
from zmq_offload.errors import InvalidArgument, OffloadError, one_line
from zmq_offload.protocol import limits
from zmq_offload.protocol.tensors import ANY, TensorSpec, datatype_of

Dim = int | str
"""An extent: a number, the name of a symbolic one (same name, same extent), or "?" for one without a name."""

SYMBOL = r"\?|[A-Za-z_][A-Za-z0-9_]*"

BATCH = "batch"
"""What "?" at dimension 0 is called: the batch, the same for all inputs (see `zmq_offload.protocol.tensors`)."""


@dataclass(frozen=True)
class Imported:
    """A model in Relax: the module with its `main`, the same as a graph by ONNX tensor names, and its signature."""

    mod: tvm.IRModule
    graph: Graph
    inputs: tuple[TensorSpec, ...]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor_spec(name, self.graph.tensors[name].ty) for name in self.graph.outputs)


def import_onnx(
    path: str | os.PathLike[str], inputs: Mapping[str, Sequence[Dim]], tensors: Iterable[str] = ()
) -> Imported:
    """Read and simplify an ONNX model for the given input shapes and import it into Relax.

    `inputs` gives the shape of each input whose shape the file leaves open. `tensors` are names that will be asked
    for: one that simplifying would fold or fuse away is kept.

    Raises InvalidArgument for a file that is not ONNX, shapes that do not fit it, and operators that TVM cannot import.
    """
    model = read_onnx(path)
    _set_input_shapes(model, inputs)
    tensors = list(tensors)
    slim = simplify(model, tensors)
    _check_outside(slim.graph, tensors)
    names = list(dict.fromkeys(o for node in slim.graph.node for o in node.output if o))
    outputs = [o.name for o in slim.graph.output]
    _expose(slim, [n for n in names if n not in outputs])
    constants = {o for node in model.graph.node for o in node.output} | {w.name for w in slim.graph.initializer}
    mod = _to_relax(slim)
    if any(node.op_type == "If" for node in slim.graph.node):
        # For a graph with branches the importer computes each output by itself, from the inputs.
        mod = relax.transform.CanonicalizeBindings()(relax.transform.EliminateCommonSubexpr()(mod))
    return _named(mod, slim, outputs, constants | {w.name for w in model.graph.initializer})


def import_uncut(path: str | os.PathLike[str], inputs: Mapping[str, Sequence[Dim]]) -> tvm.IRModule:
    """As `import_onnx`, for a model that stays whole: nothing but the model's outputs can be found again."""
    model = read_onnx(path)
    _set_input_shapes(model, inputs)
    return _to_relax(simplify(model))


def model_inputs(path: str | os.PathLike[str], inputs: Mapping[str, Sequence[Dim]]) -> tuple[TensorSpec, ...]:
    """The inputs of an ONNX model with the shapes that `inputs` gives, without importing it. Raises InvalidArgument."""
    model = read_onnx(path)
    _set_input_shapes(model, inputs)
    weights = {w.name for w in model.graph.initializer}
    found = []
    for info in model.graph.input:
        if info.name not in weights:
            kind = info.type.tensor_type
            datatype = datatype_of(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            found.append(TensorSpec(info.name, datatype, tuple(d.dim_value or ANY for d in kind.shape.dim)))
    return tuple(found)


def parse_shape(text: str) -> tuple[str, tuple[Dim, ...]]:
    """`NAME=DIMS`, such as "x=1,3,320,320" or "x=N,3,48,?", as (name, dims). Raises InvalidArgument."""
    name, equals, dims = text.rpartition("=")
    parts = [d.strip() for d in dims.split(",")] if dims.strip() else []
    if not equals or not name or not all(re.fullmatch(rf"[1-9][0-9]*|{SYMBOL}", d) for d in parts):
        raise InvalidArgument(
            f"--input {text!r}: write NAME=DIMS, dimensions from 1, symbolic ones by name or '?': x=1,3,320,320"
        )
    return name, tuple(int(d) if d.isdigit() else d for d in parts)


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[Dim, ...]]:
    """What `--input` gives, each as for `parse_shape`. Raises InvalidArgument for an input that is given twice, too."""
    shapes: dict[str, tuple[Dim, ...]] = {}
    for name, dims in map(parse_shape, texts):
        if name in shapes:
            raise InvalidArgument(f"--input: the shape of {name!r} is given twice")
        shapes[name] = dims
    return shapes


def _set_input_shapes(model: onnx.ModelProto, given: Mapping[str, Sequence[Dim]]) -> None:
    weights = {w.name for w in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in weights}
    for name in given:
        if name not in inputs:
            raise InvalidArgument(
                f"--input: the model has no input {name!r}; it has {_described(inputs.values())}"
                f"{did_you_mean(name, inputs)}"
            )
    for index, (name, info) in enumerate(inputs.items()):
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type"):
            raise InvalidArgument(f"input {name!r} is not a tensor; only models whose inputs are tensors can be used")
        if not kind.elem_type:
            raise InvalidArgument(f"input {name!r} has no datatype in the file; export the model with one")
        if kind.elem_type in (onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
            what = onnx.TensorProto.DataType.Name(kind.elem_type)
            raise InvalidArgument(
                f"input {name!r} is of {what}; only numbers and booleans can be used: export the model without "
                "the part that reads it"
            )
        # Without a shape not even the rank is known. An extent below 1 is open, too: Paddle writes -1.
        known = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim] if kind.HasField("shape") else None
        dims = given.get(name)
        if dims is None:
            if known is None or None in known:
                usual = [1, 3, 64, 64, 64, 64]
                example = ",".join(str(d or u) for d, u in zip(known or usual[:4], usual, strict=False))
                raise InvalidArgument(
                    f"--input is missing for {_described([info])}; give a shape, like {name}={example}"
                )
            continue
        if known is not None and len(dims) != len(known):
            raise InvalidArgument(f"--input {name!r} has {len(dims)} dimensions, the model's is {_described([info])}")
        for axis, (dim, fixed) in enumerate(zip(dims, known or [None] * len(dims), strict=True)):
            if not (
                re.fullmatch(SYMBOL, dim)
                if isinstance(dim, str)
                else isinstance(dim, Integral) and 1 <= dim < limits.EXTENT
            ):
                raise InvalidArgument(
                    f"--input {name!r}: dimension {axis} is {dim!r}; use a number from 1, a symbolic one's name, or '?'"
                )
            if fixed is not None and dim != fixed:
                raise InvalidArgument(f"--input {name!r}: dimension {axis} is {fixed} in the model, not {dim}")
        kind.shape.Clear()
        kind.shape.SetInParent()  # a scalar has a shape without extents, which is not the same as none
        for axis, dim in enumerate(dims):
            field = kind.shape.dim.add()
            if not isinstance(dim, str):
                field.dim_value = int(dim)
            elif dim != "?":
                field.dim_param = dim
            else:
                field.dim_param = BATCH if axis == 0 else f"dim_{index}_{axis}"
    # What the file says of other tensors' shapes holds for the shapes that it was exported with.
    del model.graph.value_info[:]
    for output in model.graph.output:
        for field in output.type.tensor_type.shape.dim:
            field.Clear()


def simplify(model: onnx.ModelProto, tensors: Iterable[str] = ()) -> onnx.ModelProto:
    """Fold what is constant, above all the shapes that TVM's importer cannot compute at run time.

    A tensor of `tensors` that would disappear is kept, as far as the model has it.
    """
    slim = _slim(model)
    lost = set(tensors) - {o for node in slim.graph.node for o in node.output}
    if lost:
        # An output is not folded away, but it needs a datatype; a tensor that gets none here is not in the model.
        keep = onnx.shape_inference.infer_shapes(model)
        outputs = [o.name for o in keep.graph.output]
        found = [v.name for v in keep.graph.value_info if v.name in lost and v.name not in outputs]
        if found:
            _expose(keep, found)
            slim = _slim(keep)
            del slim.graph.output[len(outputs) :]
    return slim


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = inlined(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return onnxslim.slim(copy)
    except Exception as error:
        unknown = unknown_operators(copy.graph, opset_of(copy))
        if unknown:
            raise InvalidArgument(f"TVM cannot import the operator {', '.join(unknown)}") from error
        raise InvalidArgument(f"the model cannot be simplified: {one_line(error)}") from error


def _check_outside(graph: onnx.GraphProto, tensors: Sequence[str]) -> None:
    """Raises InvalidArgument for a tensor in the body of a loop or a branch: it is there as often as that runs."""
    # A node with a body that is always the same is not here any more: simplifying has put the body in its place.
    outside = {o for node in graph.node for o in node.output}
    for node in graph.node:
        inside = set(_inside(node)) - outside
        for tensor in tensors:
            if tensor in inside:
                raise InvalidArgument(
                    f"--cut, --until: tensor {tensor!r} is inside the body of {node.op_type} "
                    f"{node.name or node.output[0]!r}; a model can be cut before it or behind it, at "
                    f"{', '.join(map(repr, node.output))} for example"
                )


def _inside(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors of the bodies of a loop or a branch, and of those inside them."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (value.name for value in (*body.input, *body.initializer))
            for inner in body.node:
                yield from inner.output
                yield from _inside(inner)


def _expose(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make tensors of the graph outputs of it, too: outputs are what the importer lets us find again."""
    known = {v.name: v for v in model.graph.value_info}
    model.graph.output.extend(known.get(name) or onnx.ValueInfoProto(name=name) for name in names)


def _to_relax(model: onnx.ModelProto) -> tvm.IRModule:
    try:
        # The importer prints the operator that it stumbles over, and warns of names and shapes that it changes.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), interruptible():
            warnings.simplefilter("ignore")
            return import_graph(model)
    except OffloadError:
        raise
    except Exception as error:
        raise InvalidArgument(f"TVM cannot import the model: {one_line(error)}") from error


def _named(mod: tvm.IRModule, model: onnx.ModelProto, outputs: Sequence[str], constants: set[str]) -> Imported:
    main = mod["main"]
    bindings = [b for block in main.body.blocks for b in block.bindings]
    dataflow = all(isinstance(block, relax.DataflowBlock) for block in main.body.blocks)
    result = main.body.body
    if bindings and bindings[-1].var == result and isinstance(bindings[-1].value, ir.Var | relax.Tuple):
        result = bindings.pop().value
    names = [o.name for o in model.graph.output]
    values = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    # Initializers are not inputs, so what is left of graph.input is in the order of the parameters.
    weights = {w.name for w in model.graph.initializer}
    params = [i.name for i in model.graph.input if i.name not in weights]
    tensors: dict[str, Any] = dict(zip(params, main.params, strict=True))
    tensors.update({n: v for n, v in zip(names, values, strict=True) if n not in tensors})
    graph = Graph(
        tuple(main.params), tuple(bindings), tensors, tuple(outputs), frozenset(constants - set(tensors)), dataflow
    )
    return Imported(mod, graph.pruned(), input_specs(params, [p.ty for p in main.params]))


def _described(inputs: Iterable[onnx.ValueInfoProto]) -> str:
    def shape(info: onnx.ValueInfoProto) -> str:
        if not info.type.tensor_type.HasField("shape"):
            return "any shape"
        dims = info.type.tensor_type.shape.dim
        return ",".join(str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in dims)

    return ", ".join(f"{i.name!r} [{shape(i)}]" for i in inputs) or "none"
