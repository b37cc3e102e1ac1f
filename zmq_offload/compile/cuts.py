"""Find the tensors at which a model can be cut, with the bytes that cross each cut and the work after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, relax, tirx

from zmq_offload.byoc.codegen import tensor_spec
from zmq_offload.byoc.graph import Graph
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.schedules.recurrent import RECURRENT


@dataclass(frozen=True)
class CutPoint:
    """A tensor that alone separates the model's inputs from its outputs.

    Attributes
    ----------
    tensor : TensorSpec
        Name, datatype and shape.
    share : float
        Fraction, 0 to 1, of the model's multiply-adds (convolutions, matrix products, recurrent steps) that a cut here
        offloads.
    module : str, optional
        Path of the outermost PyTorch module whose only output the tensor is; `compile_model` takes it as `cut`, too.
    name : str
        The tensor's name, which `compile_model` takes as `cut`.
    nbytes : int
        Size of the tensor in bytes. Symbolic extents count as 1, here and in `share`.

    Examples
    --------
    >>> small = min(list_cuts("m.onnx"), key=lambda point: point.nbytes)  # doctest: +SKIP
    >>> compile_model("m.onnx", cut=small.name, name="m")  # doctest: +SKIP
    """

    tensor: TensorSpec
    share: float
    module: str | None = None

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


def cut_points(graph: Graph) -> list[CutPoint]:
    """The cut points of a model, in graph order. Its outputs are not among them: nothing comes after them."""
    live = graph.from_inputs() & graph.upstream(graph.result_vars())
    end = len(graph.bindings)
    last_use = dict.fromkeys(graph.result_vars(), end)
    for position, binding in enumerate(graph.bindings):
        for var in graph.used(binding.var):
            if binding.var in live:
                last_use[var] = max(last_use.get(var, 0), position)
    costs = [multiply_adds(b.value) if b.var in live else 0 for b in graph.bindings]
    total = remaining = sum(costs)
    found = []
    # A tensor separates inputs from outputs if, right after it is computed, no other live tensor is still needed.
    needed = {p for p in graph.params if p in live}
    if len(needed) == 1:
        found += _point(graph, next(iter(needed)), 1.0, end, last_use)
    for position, (binding, cost) in enumerate(zip(graph.bindings, costs, strict=True)):
        remaining -= cost
        if binding.var in live:
            needed.add(binding.var)
        needed = {v for v in needed if last_use.get(v, -1) > position}
        if needed == {binding.var}:
            found += _point(graph, binding.var, remaining / total if total else 0.0, end, last_use)
    return found


def _point(graph: Graph, var: ir.Var, share: float, end: int, last_use: dict[ir.Var, int]) -> list[CutPoint]:
    if not graph.named(var) or last_use[var] == end:
        return []
    try:
        return [CutPoint(tensor_spec(graph.name(var), var.ty), share)]
    except InvalidArgument:  # a shape, or a datatype that messages do not support
        return []


def multiply_adds(value: relax.Expr) -> int:
    """Multiply-adds of a convolution, a transposed convolution, a matrix product or the steps of a recurrent network;
    0 for everything else."""
    if not isinstance(value, ir.Call) or not isinstance(value.op, ir.Op):
        return 0
    kind = value.op.name.removeprefix("relax.").removeprefix("nn.")
    if kind == "call_tir" and value.attrs is not None and RECURRENT in value.attrs:
        # Each step multiplies the state by the weights of all gates: a row of the inputs' product has their columns.
        columns, state = (_extents(operand.ty) for operand in value.args[1].fields[:2])
        return math.prod(columns) * state[-1]
    if kind == "matmul":
        inner = _extents(value.args[0].ty)[-1:]
        return math.prod(_extents(value.ty)) * math.prod(inner)
    if kind in ("conv1d", "conv2d", "conv3d"):
        # Each output element is a sum over one filter (out channels, in channels of the group, *kernel).
        return math.prod(_extents(value.ty)) * math.prod(_extents(value.args[1].ty)[1:])
    if kind in ("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"):
        # Each input element is spread over one filter (in channels, out channels of the group, *kernel).
        return math.prod(_extents(value.args[0].ty)) * math.prod(_extents(value.args[1].ty)[1:])
    return 0


def _extents(ty: ir.Type) -> Sequence[int]:
    shape = ty.shape if isinstance(ty, relax.TensorType) and ty.shape is not None else ()
    return [int(d) if isinstance(d, tirx.IntImm) else 1 for d in shape]
