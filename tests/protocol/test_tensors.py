"""Signatures and what they say of tensors that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec, check_tensors, datatype_of

IMAGE = TensorSpec("image", "FP32", (-1, 3, 8, 8))
SIZE = TensorSpec("size", "INT64", (-1, 2))


@pytest.mark.parametrize("name", DATATYPES)
def test_every_datatype_has_one_name(name: str) -> None:
    assert datatype_of(DATATYPES[name]) == name
    assert datatype_of(DATATYPES[name].newbyteorder(">")) == name


@pytest.mark.parametrize("dtype", ["complex64", "U4", "object", "M8[s]", "bfloat99"])
def test_other_dtypes_are_refused_with_the_list(dtype: str) -> None:
    with pytest.raises(InvalidArgument, match="use one of BOOL"):
        datatype_of(dtype)


def check(**given: np.ndarray) -> None:
    named = {name: (datatype_of(a.dtype), a.shape) for name, a in given.items()}
    check_tensors([IMAGE, SIZE], named, what="model 'm'")


def test_what_fits_passes_whatever_its_batch() -> None:
    for batch in (1, 5):
        check(image=np.zeros((batch, 3, 8, 8), "f4"), size=np.zeros((batch, 2), "i8"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "input 'image' is missing, input 'size' is missing; it takes image FP32"),
        ({"image": ("f4", (1, 3, 8, 8)), "size": ("i8", (1, 2)), "x": ("f4", ())}, "input 'x' is not known"),
        ({"image": ("f8", (1, 3, 8, 8)), "size": ("i8", (1, 2))}, r"'image' has datatype FP64, it takes image FP32"),
        ({"image": ("f4", (1, 3, 8, 9)), "size": ("i8", (1, 2))}, r"'image' has shape \[1, 3, 8, 9\], it takes"),
        ({"image": ("f4", (3, 8, 8)), "size": ("i8", (1, 2))}, r"'image' has shape \[3, 8, 8\]"),
        ({"image": ("f4", (2, 3, 8, 8)), "size": ("i8", (1, 2))}, "'size' has batch 1 but input 'image' has batch 2"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, tuple[str, tuple[int, ...]]], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        check(**{name: np.zeros(shape, dtype) for name, (dtype, shape) in given.items()})
