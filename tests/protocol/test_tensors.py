"""Signatures of tensors, and the errors for tensors that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import (
    DATATYPES,
    TensorSpec,
    array_of,
    check_signature,
    check_tensors,
    datatype_of,
)

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


def test_tensors_that_fit_pass_with_any_batch() -> None:
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
def test_a_tensor_that_does_not_fit_is_named(given: dict[str, tuple[str, tuple[int, ...]]], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        check(**{name: np.zeros(shape, dtype) for name, (dtype, shape) in given.items()})


def test_tensors_of_one_batch_may_have_other_extents_fixed() -> None:
    specs = [TensorSpec("x", "FP32", (2, -1)), TensorSpec("scalar", "FP32", ())]
    check_tensors(specs, {"x": ("FP32", (2, 7)), "scalar": ("FP32", ())}, what="model 'm'")


def test_a_spec_knows_its_size_and_its_text() -> None:
    assert IMAGE.nbytes == 3 * 8 * 8 * 4
    assert SIZE.dtype == np.dtype("<i8")
    assert str(IMAGE) == "image FP32[?,3,8,8]"


def test_a_spec_survives_json() -> None:
    assert TensorSpec.from_json(IMAGE.to_json()) == IMAGE


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "must be an object with name, datatype and shape"),
        ({"name": 3}, "name must be a string, not 3"),
        ({"name": "x", "datatype": 3}, "datatype must be a string, not 3"),
        ({"name": "x", "datatype": "float", "shape": []}, "datatype 'float' is not one of BOOL"),
        ({"name": "x", "datatype": "FP32", "shape": "2"}, "shape '2' is not a list of extents"),
        ({"name": "x", "datatype": "FP32", "shape": [True]}, "is not a list of extents"),
        ({"name": "x", "datatype": "FP32", "shape": [-2]}, "is not a list of extents"),
        ({"name": "x", "datatype": "FP32", "shape": [1] * 17}, "more than 16 extents"),
        ({"name": "x", "datatype": "FP32", "shape": [2**40]}, r"one from 2\*\*40"),
        ({"name": "", "datatype": "FP32", "shape": []}, "1 to 512 bytes, not 0"),
        ({"name": "\ud800", "datatype": "FP32", "shape": []}, "Unicode"),
    ],
)
def test_a_spec_that_no_message_carries_is_refused(value: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        TensorSpec.from_json(value)


def test_a_models_tensors_have_different_names_and_a_limit() -> None:
    check_signature([IMAGE, SIZE], [IMAGE])
    with pytest.raises(InvalidArgument, match="two outputs have the name 'size'"):
        check_signature([IMAGE], [SIZE, SIZE])
    with pytest.raises(InvalidArgument, match="257 inputs"):
        check_signature([TensorSpec(str(number), "FP32", ()) for number in range(257)], [])


def test_masked_values_are_refused_and_masks_without_any_are_not() -> None:
    with pytest.raises(ValueError, match="masked values"):
        array_of(np.ma.masked_equal([1, 2], 2))
    np.testing.assert_array_equal(array_of(np.ma.masked_equal([1, 2], 3)), [1, 2])
    np.testing.assert_array_equal(array_of([[1], [2]]), [[1], [2]])


BOUND = TensorSpec("ids", "INT64", (-1, -1, 4), (1, 8, 1), (-1, 20, -1))


def test_bounds_of_extents_are_written_and_read_back() -> None:
    assert TensorSpec.from_json(BOUND.to_json()) == BOUND
    assert set(IMAGE.to_json()) == {"name", "datatype", "shape"}
    assert str(BOUND) == "ids INT64[?,8*?,4]"
    assert [BOUND.multiple(axis) for axis in range(3)] == [1, 8, 1]
    assert [BOUND.maximum(axis) for axis in range(3)] == [None, 20, None]
    assert IMAGE.multiple(0) == 1 and IMAGE.maximum(0) is None


def test_a_usual_extent_is_a_number_of_multiples_below_the_maximum() -> None:
    assert [BOUND.usual(1, extent) for extent in (1, 9, 100)] == [1, 2, 2]
    assert BOUND.usual(0, 3) == 3


@pytest.mark.parametrize(
    ("extent", "words"),
    [
        (12, r"dimension 1 of input 'ids' is 12, which is not a multiple of 8; it takes ids INT64\[\?,8\*\?,4\]"),
        (24, "dimension 1 of input 'ids' is 24, but a table of the model ends at 20; it takes at most 20"),
    ],
)
def test_an_extent_outside_of_its_bounds_is_refused(extent: int, words: str) -> None:
    check_tensors([BOUND], {"ids": ("INT64", (1, 8, 4))}, what="model 'm'")
    with pytest.raises(InvalidArgument, match=words):
        check_tensors([BOUND], {"ids": ("INT64", (1, extent, 4))}, what="model 'm'")


@pytest.mark.parametrize("key", ["multiples", "maximums"])
@pytest.mark.parametrize("value", ["8", 8, [1], [1, 0, 1], [1, "8", 1], [1, True, 1], [[], 1, 1], [1, -2, 1]])
def test_bounds_that_are_not_numbers_for_each_extent_are_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=f"tensor 'ids': {key} "):
        TensorSpec.from_json({"name": "ids", "datatype": "INT64", "shape": [-1, -1, 4], key: value})
