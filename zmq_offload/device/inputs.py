"""The inputs of a call, in the model's order, as arrays that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from zmq_offload.errors import InvalidArgument, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec, array_of, check_tensors, datatype_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Inputs:
    """The inputs of a model."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._exact = [(spec.shape, spec.dtype) for spec in specs]

    def arranged(self, args: Sequence[ArrayLike], kwargs: Mapping[str, ArrayLike]) -> Sequence[Array]:
        """The arguments of a call, given in order or by name. Raises InvalidArgument, naming the input, if one is
        missing, unknown, given twice, or does not fit."""
        if kwargs or len(args) != len(self._exact):
            return _arranged(self._specs, args, kwargs)
        for value, (shape, dtype) in zip(args, self._exact):  # noqa: B905  (there are as many)
            if type(value) is not np.ndarray or value.shape != shape or value.dtype is not dtype:
                return _arranged(self._specs, args, kwargs)
        return args  # type: ignore[return-value]  # arrays of exactly these datatypes and shapes


def _arranged(
    specs: Sequence[TensorSpec], args: Sequence[ArrayLike], kwargs: Mapping[str, ArrayLike]
) -> Sequence[Array]:
    names = [spec.name for spec in specs]
    if len(args) > len(names):
        raise InvalidArgument(f"the model takes {len(names)} inputs, not {len(args)}: {'; '.join(map(str, specs))}")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise InvalidArgument(f"the model: input {name!r} is given twice, in order and by name")
        given[name] = value
    arrays = {name: _array(name, value) for name, value in given.items()}
    check_tensors(specs, {n: (datatype_of(a.dtype), a.shape) for n, a in arrays.items()}, what="the model")
    return [arrays[name] for name in names]


def _array(name: str, value: ArrayLike) -> Array:
    try:
        array = array_of(value)
        datatype_of(array.dtype)
    except ValueError as error:  # InvalidArgument is one, too
        raise InvalidArgument(f"the model: input {name!r} is not a tensor: {one_line(error)}") from None
    return array
