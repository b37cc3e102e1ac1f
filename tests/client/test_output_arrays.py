"""Arrays for outputs: one that cannot fit is refused before the model runs, and nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zmq_offload.client.output_arrays import Signatures, check_output_arrays, fill
from zmq_offload.client.results import Outputs, Timings
from zmq_offload.errors import InvalidArgument

READ_ONLY = np.zeros(3)
READ_ONLY.flags.writeable = False
BOTH = np.zeros(10, np.float32)
TIMES = Timings(0.0001, 0.002, 0.003, 0.004)


def outputs(**arrays: Any) -> Outputs:
    return Outputs(arrays, "m", 1, TIMES)


def listed(version: int, *tensors: tuple[str, str, list[int]]) -> dict[str, Any]:
    described = [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in tensors]
    return {"name": "m", "version": version, "inputs": [], "outputs": described, "workers": 1}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ([np.zeros(3)], "outputs is a list; use a mapping of names to arrays"),
        (np.zeros(3), "outputs is a ndarray"),
        ({"y": [0.0, 0.0]}, "the array for output 'y' is a list; use a NumPy array"),
        ({"y": None}, "is a NoneType"),
        ({"y": np.float32(1)}, "is a float32"),
        ({1: np.zeros(3)}, "output name 1 is not a string"),
        ({"y": READ_ONLY}, "the array for output 'y' is read-only"),
        ({"y": np.broadcast_to(0.0, 3)}, "read-only"),
        ({"y": np.zeros(3, object)}, "the array for output 'y': datatype object cannot be sent"),
        ({"y": np.zeros(3, "U1")}, "cannot be sent"),
        ({"y": BOTH, "z": BOTH}, "the arrays for outputs 'y' and 'z' share memory"),
        ({"y": BOTH[:6], "z": BOTH[5:]}, "share memory"),
        ({"y": BOTH, "z": BOTH.view(np.int32)[::2]}, "share memory"),
        (
            {"y": np.lib.stride_tricks.as_strided(BOTH, (3, 4), (0, 8))},
            "elements of .* 'y' share memory",
        ),
        (
            {"y": np.lib.stride_tricks.as_strided(BOTH, (3, 4), (8, 8))},
            "elements of .* 'y' share memory",
        ),
    ],
)
def test_arrays_that_can_never_be_filled_are_refused(arrays: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        check_output_arrays(arrays)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"y": BOTH[:5], "z": BOTH[5:]},
        {"y": BOTH[::2], "z": BOTH[1::2]},
        {"y": np.zeros((3, 4), order="F"), "z": np.zeros((4, 4))[:, 1]},
        {"y": np.zeros(()), "z": np.zeros((0, 3))},
        {"y": np.zeros((4, 6))[::-2, ::3].T, "z": np.zeros((4, 1, 6))[1:2, :, ::-1]},
    ],
)
def test_views_in_any_memory_order_are_accepted(arrays: Any) -> None:
    check_output_arrays(arrays)


def test_results_are_written_into_views() -> None:
    whole = np.zeros((2, 6))
    result = outputs(y=np.arange(6.0).reshape(2, 3))
    fill(result, {"y": whole[:, ::2]})
    assert result["y"].base is whole
    np.testing.assert_array_equal(whole, [[0, 0, 1, 0, 2, 0], [3, 0, 4, 0, 5, 0]])


def test_if_one_array_does_not_fit_none_is_written() -> None:
    first = np.zeros(2)
    with pytest.raises(InvalidArgument, match=r"'z' of model 'm' is float64\[2\]; the array for it is float64\[3\]"):
        fill(outputs(y=np.ones(2), z=np.ones(2)), {"y": first, "z": np.zeros(3)})
    np.testing.assert_array_equal(first, 0)


def test_announced_signatures_are_compared_by_names_datatypes_and_shapes() -> None:
    known = Signatures()
    known.announced([listed(3, ("y", "FP32", [-1, 4]), ("n", "INT64", []))])
    fits = {"n": np.zeros((), np.int64), "y": np.zeros((7, 4), np.float32)}
    assert known.mismatch("m", 3, fits) is None
    assert known.mismatch("m", None, fits) is None
    assert known.mismatch("m", 2, {}) is None, "nothing is known of it"
    assert known.mismatch("m", 3, {"y": fits["y"]}) == "model 'm' returns y, n; the arrays are for y"
    wrong = known.mismatch("m", 3, fits | {"y": np.zeros((7, 5), np.float32)})
    assert wrong == "output 'y' of model 'm' is float32[?, 4]; the array for it is float32[7, 5]"
    swapped = known.mismatch("m", None, fits | {"y": np.zeros((7, 4), ">f4")})
    assert swapped == "output 'y' of model 'm' is float32[?, 4]; the array for it is >f4[7, 4]"


def test_a_name_that_the_model_does_not_return_is_refused_after_the_reply() -> None:
    with pytest.raises(InvalidArgument, match="model 'm' returns y; the arrays are for none"):
        fill(outputs(y=np.ones(2)), {})


def test_for_the_latest_any_version_that_is_served_may_fit() -> None:
    known = Signatures()
    known.announced([listed(1, ("y", "FP32", [1])), listed(2, ("z", "FP32", [1]))])
    for name in "yz":
        assert known.mismatch("m", None, {name: np.zeros(1, np.float32)}) is None
    assert known.mismatch("m", None, {"x": np.zeros(1, np.float32)}) == "model 'm' returns z; the arrays are for x"
    assert known.mismatch("m", 1, {"z": np.zeros(1, np.float32)}) == "model 'm' returns y; the arrays are for z"


def test_earlier_replies_are_doubted_until_the_brokers_list_is_known() -> None:
    known = Signatures()
    known.answered(outputs(y=np.ones(2)), None)
    assert known.mismatch("m", None, {"y": np.zeros(5)}) is None, "another input may give another shape"
    assert known.mismatch("m", None, {"z": np.zeros(2)}) == "model 'm' returns y; the arrays are for z"
    assert known.mismatch("m", None, {"y": np.zeros(2, "f4")}) == (
        "output 'y' of model 'm' is float64; the array for it is float32[2]"
    )
    known.announced([listed(1)])  # an echo worker returns its inputs
    assert known.mismatch("m", None, {"z": np.zeros(2)}) is None


def test_entries_of_a_newer_broker_are_ignored() -> None:
    known = Signatures()
    known.announced([{"name": "m"}, {}, listed(1, ("y", "FP8", [1]))])
    assert known.mismatch("m", None, {"z": np.zeros(2)}) is None


def test_outputs_show_names_datatypes_shapes_and_times_and_no_values() -> None:
    shown = repr(outputs(y=np.zeros((1, 1000), np.float32), n=np.int64(3)[...]))
    assert shown == (
        "<Outputs of 'm' version 1: y float32[1, 1000], n int64[]; "
        "queue 0.100 ms, compute 2.000 ms, broker 3.000 ms, total 4.000 ms>"
    )
    assert repr(outputs()).startswith("<Outputs of 'm' version 1: none;")
    many = repr(outputs(**{f"t{n}": np.zeros(1) for n in range(100)}))
    assert "t7 float64[1], and 92 more" in many and "t8" not in many
