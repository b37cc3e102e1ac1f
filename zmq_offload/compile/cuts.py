"""Find the tensors at which a model can be cut, with the bytes that cross each cut and the work after it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tvm import ir, relax

from zmq_offload.byoc.carried import carried, cheap, maskable
from zmq_offload.byoc.codegen import tensor_spec
from zmq_offload.byoc.graph import Graph
from zmq_offload.compile.typical import Typical
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.schedules.recurrent.operators import RECURRENT


@dataclass(frozen=True)
class CutPoint:
    """A place where a model can be cut: one tensor, or a few that together separate its inputs from its outputs.

    Attributes
    ----------
    tensor : TensorSpec
        Name, datatype and shape of the tensor that is computed last.
    share : float
        Fraction, 0 to 1, of the model's multiply-adds (convolutions, matrix products, recurrent steps) that a cut here
        offloads.
    nbytes : int
        Size of all these tensors in bytes. For symbolic extents see `CutPoints.inputs`, here and in `share`.
    module : str, optional
        Path of the outermost PyTorch module whose only output the tensor is; `compile_model` takes it as `cut`, too.
    others : tuple of TensorSpec
        Further tensors to cut at. Most cuts have none.
    carried : tuple of TensorSpec
        What `compile_model` sends along by itself: cheap functions of integer inputs, such as a mask, or those inputs.
    name : str
        The tensor's name, which `compile_model` takes as `cut`.
    names : tuple of str
        The names of `others` and of the tensor: the value of `cut`.

    Examples
    --------
    >>> small = min(list_cuts("m.onnx"), key=lambda point: point.nbytes)  # doctest: +SKIP
    >>> compile_model("m.onnx", cut=small.names, name="m")  # doctest: +SKIP
    """

    tensor: TensorSpec
    share: float
    nbytes: int
    module: str | None = None
    others: tuple[TensorSpec, ...] = ()
    carried: tuple[TensorSpec, ...] = ()

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def names(self) -> tuple[str, ...]:
        return (*(spec.name for spec in self.others), self.name)


MOST_TENSORS = 4
"""The most tensors of a listed cut, besides inputs of the model. With more, few people would find their way."""


def cut_points(graph: Graph) -> list[CutPoint]:
    """The tensors that alone, or with what is `carried`, separate the inputs from the outputs, in graph order. Outputs
    are not among them: nothing comes after them."""
    return [point for point in _points(graph) if not point.others]


def frontiers(graph: Graph) -> list[CutPoint]:
    """The points of `cut_points`, and between them the cuts at several tensors that send less than their neighbors."""
    points = _points(graph)
    shown = []
    # Without a product between them, cuts differ in bytes only. Of several tensors the last cut with the fewest counts.
    groups = [list(group) for _, group in groupby(points, key=lambda p: p.share)]
    least = [min(reversed(group), key=lambda p: p.nbytes) for group in groups]
    for at, group in enumerate(groups):
        around = [p.nbytes for p in least[max(at - 1, 0) : at + 2] if p is not least[at]]
        small = bool(least[at].others) and all(least[at].nbytes < size for size in around)
        shown += [p for p in group if not p.others or (small and p is least[at])]
    return shown


def _points(graph: Graph) -> list[CutPoint]:
    """Every cut of at most MOST_TENSORS tensors right after a tensor is computed."""
    live = graph.from_inputs() & graph.upstream(graph.result_vars())
    last_use: dict[ir.Var, int] = {}
    for position, step in enumerate(graph.steps):
        for var in graph.used(step.var):
            if step.var in live:
                last_use[var] = max(last_use.get(var, 0), position)
    typical = Typical(graph)
    costs = [multiply_adds(b.value, typical) if b.var in live else 0 for b in graph.steps]
    total = remaining = sum(costs)
    found = []
    easy = cheap(graph, maskable(graph))
    # Tensors separate inputs from outputs if, right after the last one is computed, no other is still needed.
    needed = {p: None for p in graph.params if p in live}
    if len(needed) == 1:
        found += _point(graph, [next(iter(needed))], 1.0, typical)
    for position, (step, cost) in enumerate(zip(graph.steps, costs, strict=True)):
        remaining -= cost
        if step.var not in live:
            continue
        needed[step.var] = None
        needed = {v: None for v in needed if last_use.get(v, -1) > position}
        if step.var not in needed:
            continue
        share = remaining / total if total else 0.0
        cuts = list(needed)
        if len(cuts) > 1:
            if step.var in easy:
                continue  # a mask, or what else is carried later
            cuts = [v for v in needed if v not in easy]
        # An input needs no search: a decoder reads the keys and values of earlier tokens block by block.
        if sum(v not in graph.params for v in cuts) <= MOST_TENSORS:
            found += _point(graph, cuts, share, typical)
    return found


class CutPoints(list[CutPoint]):
    """Cut points, and how many tensors were left out, by the reason.

    Attributes
    ----------
    left_out : dict of str to int
        Reason -> number of tensors.
    inputs : dict of str to tuple of int
        The shapes of inputs for which `nbytes` and `share` are counted, where symbolic dimensions leave them open.
    """

    def __init__(
        self, points: Iterable[CutPoint], left_out: Mapping[str, int], inputs: Mapping[str, tuple[int, ...]]
    ) -> None:
        super().__init__(points)
        self.left_out, self.inputs = dict(left_out), dict(inputs)


def left_out(graph: Graph, points: Sequence[CutPoint]) -> dict[str, int]:
    """Count the named tensors of a model that are no cut points, by the reason."""
    found, results = {name for point in points for name in point.names}, graph.result_vars()
    varying = graph.from_inputs()
    counts: Counter[str] = Counter()
    for name, value in graph.tensors.items():
        if name in found or value in results:
            continue
        if isinstance(value, ir.Var) and isinstance(value.ty, relax.TensorType):
            if value.ty.shape is None:
                counts["whose shape only the run tells"] += 1
            elif value in varying:
                counts["that other tensors go around"] += 1
            else:
                counts["that no input reaches"] += 1
        else:
            counts["that are constants" if isinstance(value, ir.GenericConst) else "that are shapes"] += 1
    return dict(counts)


def _point(graph: Graph, cuts: Sequence[ir.Var], share: float, typical: Typical) -> list[CutPoint]:
    """The cut at variables of a graph; none if one of them is an output, or cannot be sent. Outputs that do not depend
    on them are computed before."""
    results = graph.result_vars()
    if not all(graph.named(var) for var in cuts) or any(var in results for var in cuts):
        return []
    along = carried(graph, cuts, results if len(results) == 1 else _after(graph, cuts, results))
    if along is None:
        return []
    try:
        specs = [tensor_spec(graph.name(var), var.ty) for var in (*cuts, *along)]
    except InvalidArgument:  # a shape, or a datatype that messages do not support
        return []
    count = len(cuts)
    nbytes = typical.nbytes([*cuts, *along])
    return [CutPoint(specs[count - 1], share, nbytes, None, tuple(specs[: count - 1]), tuple(specs[count:]))]


def _after(graph: Graph, cuts: Sequence[ir.Var], results: Sequence[ir.Var]) -> list[ir.Var]:
    """The results that are computed from the cuts."""
    found = set(cuts)
    for step in graph.steps:
        if any(var in found for var in graph.used(step.var)):
            found.add(step.var)
    return [var for var in results if var in found]


def multiply_adds(value: relax.Expr, typical: Typical) -> int:
    """Multiply-adds of a convolution, a transposed convolution, a matrix product or the steps of a recurrent network;
    0 for everything else."""
    if not isinstance(value, ir.Call) or not isinstance(value.op, ir.Op):
        return 0
    kind = value.op.name.removeprefix("relax.").removeprefix("nn.")
    if kind == "call_tir" and value.attrs is not None and RECURRENT in value.attrs:
        # Each step multiplies the state by the weights of all gates: a row of the inputs' product has their columns.
        columns, state = (typical.extents(operand.ty) for operand in value.args[1].fields[:2])
        return math.prod(columns) * state[-1]
    if kind == "matmul":
        inner = typical.extents(value.args[0].ty)[-1:]
        return math.prod(typical.extents(value.ty)) * math.prod(inner)
    if kind in ("conv1d", "conv2d", "conv3d"):
        # Each output element is a sum over one filter (out channels, in channels of the group, *kernel).
        return math.prod(typical.extents(value.ty)) * math.prod(typical.extents(value.args[1].ty)[1:])
    if kind in ("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"):
        # Each input element is spread over one filter (in channels, out channels of the group, *kernel).
        return math.prod(typical.extents(value.args[0].ty)) * math.prod(typical.extents(value.args[1].ty)[1:])
    return 0
