"""Input shapes: parse those that the user gives, check them against the model, and write them into it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, TypeAlias

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits

if TYPE_CHECKING:
    import onnx

Dim: TypeAlias = int | str
"""A dimension: a number, the name of a symbolic extent (one name, one extent), a multiple of one ("8*H"), a sum
("P+S", "P+1"), or "?" for an extent without a name."""

_NUMBER, _NAME = "[1-9][0-9]{0,8}", "[A-Za-z_][A-Za-z0-9_]*"
SYMBOL = rf"\?|(?:{_NUMBER}\*)?{_NAME}|{_NAME}(?:\+(?:{_NAME}|{_NUMBER}))+"

BATCH = "batch"
"""The name of "?" at dimension 0: the batch, one extent for all inputs (see `zmq_offload.protocol.tensors`)."""

_UNUSABLE = ("STRING", "COMPLEX64", "COMPLEX128")


def parse_shape(text: str) -> tuple[str, tuple[Dim, ...]]:
    """`NAME=DIMS`, such as "x=1,3,320,320" or "x=N,3,48,?", as (name, dims). Raises InvalidArgument."""
    name, equals, dims = text.rpartition("=")
    parts = [d.strip() for d in dims.split(",")] if dims.strip() else []
    if not equals or not name or not all(re.fullmatch(rf"[1-9][0-9]*|{SYMBOL}", d) for d in parts):
        raise InvalidArgument(
            f"--input {text!r} is not an input shape; write NAME=DIMS, dimensions from 1, symbolic by name, "
            "as a multiple of one (8*H), a sum (P+S) or '?': x=1,3,320,320"
        )
    return name, tuple(int(d) if d.isdigit() else d for d in parts)


def multiple_of(dim: str) -> tuple[int, str]:
    """A symbolic dimension as its factor and its name: "8*H" is (8, "H")."""
    factor, star, name = dim.rpartition("*")
    return (int(factor) if star else 1), name


def extent_of(dim: str, symbols: Callable[[str], int]) -> int:
    """The extent of a symbolic dimension, from those of its symbols."""
    factor, total = multiple_of(dim)
    return factor * sum(int(part) if part.isdigit() else symbols(part) for part in total.split("+"))


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[Dim, ...]]:
    """Input shapes by name, from texts for `parse_shape`. Raises InvalidArgument, also for an input given twice."""
    shapes: dict[str, tuple[Dim, ...]] = {}
    for name, dims in map(parse_shape, texts):
        if name in shapes:
            raise InvalidArgument(f"--input: the shape of {name!r} is given twice")
        shapes[name] = dims
    return shapes


def shape_options(shapes: Mapping[str, Sequence[Dim]]) -> str:
    """Input shapes as a user gives them to a command."""
    return " ".join(f"--input {name}={','.join(map(str, dims))}" for name, dims in shapes.items())


def set_input_shapes(model: onnx.ModelProto, given: Mapping[str, Sequence[Dim]]) -> None:
    """Write the `given` shapes into the model's inputs. Raises InvalidArgument for one that is missing or does not fit.

    Shapes of other tensors are deleted: the file states them for the shapes that it was exported with.
    """
    weights = {w.name for w in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in weights}
    for name in given:
        if name not in inputs:
            raise InvalidArgument(
                f"--input: the model has no input {name!r}; it has {_described(inputs.values())}"
                f"{did_you_mean(name, inputs)}"
            )
    for index, (name, info) in enumerate(inputs.items()):
        _check_type(info)
        dims = given.get(name)
        if dims is None:
            _check_known(info)
        else:
            _check_dims(info, dims)
            _write_shape(info, dims, index)
    del model.graph.value_info[:]
    for output in model.graph.output:
        for field in output.type.tensor_type.shape.dim:
            field.Clear()


def _check_type(info: onnx.ValueInfoProto) -> None:
    import onnx  # a device parses the shapes for its profile without it

    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        raise InvalidArgument(f"input {info.name!r} is not a tensor; only models whose inputs are tensors can be used")
    if not kind.elem_type:
        raise InvalidArgument(f"input {info.name!r} has no datatype in the file; export the model with one")
    datatype = onnx.TensorProto.DataType.Name(kind.elem_type)
    if datatype in _UNUSABLE:
        raise InvalidArgument(
            f"input {info.name!r} is of {datatype}; only numbers and booleans can be used, so export the model "
            "without the operators that read it"
        )


def _known(info: onnx.ValueInfoProto) -> list[int | None] | None:
    """The extents in the file, None for an open one; None if not even the rank is known."""
    kind = info.type.tensor_type
    # Paddle writes -1 for an open extent.
    return [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim] if kind.HasField("shape") else None


def _check_known(info: onnx.ValueInfoProto) -> None:
    """Raises InvalidArgument if the file leaves an input's shape open, with an example of one."""
    known = _known(info)
    if known is None or None in known:
        usual = [1, 3, 64, 64, 64, 64]
        example = ",".join(str(d or u) for d, u in zip(known or usual[:4], usual, strict=False))
        raise InvalidArgument(f"--input is missing for {_described([info])}; give a shape, like {info.name}={example}")


def _check_dims(info: onnx.ValueInfoProto, dims: Sequence[Dim]) -> None:
    name, known = info.name, _known(info)
    if known is not None and len(dims) != len(known):
        raise InvalidArgument(f"--input {name!r} has {len(dims)} dimensions, the model's is {_described([info])}")
    for axis, (dim, fixed) in enumerate(zip(dims, known or [None] * len(dims), strict=True)):
        if not _is_dim(dim):
            raise InvalidArgument(
                f"--input {name!r}: dimension {axis} is {dim!r}; use a number from 1, a symbolic one's name, "
                "a multiple of one (8*H), a sum (P+S), or '?'"
            )
        if fixed is not None and dim != fixed:
            raise InvalidArgument(f"--input {name!r}: dimension {axis} is {fixed} in the model, not {dim}")


def _is_dim(dim: object) -> bool:
    if isinstance(dim, str):
        return re.fullmatch(SYMBOL, dim) is not None
    return isinstance(dim, Integral) and 1 <= int(dim) < limits.EXTENT


def _write_shape(info: onnx.ValueInfoProto, dims: Sequence[Dim], index: int) -> None:
    shape = info.type.tensor_type.shape
    shape.Clear()
    shape.SetInParent()  # a scalar has a shape without extents, which is different from no shape
    for axis, dim in enumerate(dims):
        field = shape.dim.add()
        if not isinstance(dim, str):
            field.dim_value = int(dim)
        elif dim != "?":
            field.dim_param = dim
        else:
            field.dim_param = BATCH if axis == 0 else f"dim_{index}_{axis}"


def _described(inputs: Iterable[onnx.ValueInfoProto]) -> str:
    def shape(info: onnx.ValueInfoProto) -> str:
        if not info.type.tensor_type.HasField("shape"):
            return "any shape"
        dims = info.type.tensor_type.shape.dim
        return ",".join(str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in dims)

    return ", ".join(f"{i.name!r} [{shape(i)}]" for i in inputs) or "none"
