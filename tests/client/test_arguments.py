"""NumPy's numbers are accepted. NaN, senseless infinities, bools and strings are refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from zmq_offload.client.arguments import check_call, check_max_frame_bytes, check_policy, check_timeout
from zmq_offload.client.session import RetryPolicy
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import Latest


@pytest.mark.parametrize("timeout", [3, 3.0, np.float16(3), np.float32(3), np.float64(3), np.int8(3), np.uint64(3)])
def test_a_timeout_may_be_any_number_and_becomes_a_float(timeout: Any) -> None:
    seconds = check_timeout(timeout)
    assert type(seconds) is float
    assert seconds == 3.0


NO_TIMES = [0, -1, np.float32(-1), float("nan"), np.float32("nan"), float("inf"), np.float16("inf"), 10**400, True]
NO_TIMES += [np.True_, "1", None, [1.0], np.ones(2), 1j, Fraction(1, 2)]


@pytest.mark.parametrize("timeout", NO_TIMES)
def test_a_wrong_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"timeout .* is not a number of seconds above 0"):
        check_timeout(timeout)
    with pytest.raises(InvalidArgument, match=r"timeout .* is not a number of seconds above 0"):
        check_call("echo", timeout, None, 0)


def test_versions_and_priorities_become_plain_integers() -> None:
    checked = check_call("echo", np.float32(0.5), np.int64(7), np.int8(-3))  # type: ignore[arg-type]
    assert checked == (0.5, 7, -3, b"", "")
    assert list(map(type, checked)) == [float, int, int, bytes, str]
    assert check_call("echo", 1.0, None, 0) == (1.0, 0, 0, b"", "")


@pytest.mark.parametrize("version", [0, -1, 2**31, True, np.True_, 1.0, np.float32(1), "1", np.array([1]), [1]])
def test_a_wrong_version_is_refused(version: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"version .* is not a whole number from 1"):
        check_call("echo", 1.0, version, 0)


@pytest.mark.parametrize("priority", [101, np.int16(-101), True, 0.0, np.float32(0), None, "0"])
def test_a_wrong_priority_is_refused(priority: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"priority .* is not a whole number from -100 to 100"):
        check_call("echo", 1.0, None, priority)


def test_a_policys_fields_become_floats_and_may_be_infinite() -> None:
    policy = check_policy(RetryPolicy(np.float32(0.5), float("inf"), np.int64(1000)))  # type: ignore[arg-type]
    assert policy == RetryPolicy(0.5, float("inf"), 1000.0)
    assert {type(value) for value in (policy.heartbeat, policy.patience, policy.slowest_link)} == {float}
    assert check_policy(None) == RetryPolicy()


@pytest.mark.parametrize("field", ["heartbeat", "patience", "slowest_link", "come_back"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), np.float32("nan"), True, "1", None])
def test_a_wrong_field_of_a_policy_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"{field} .* of the policy is not a number above 0"):
        check_policy(RetryPolicy(**{field: value}))


def test_a_value_that_is_not_a_policy_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"is not a zmq_offload.client.session.RetryPolicy"):
        check_policy({"heartbeat": 1.0})  # type: ignore[arg-type]


def test_max_frame_bytes_is_a_whole_number() -> None:
    assert type(check_max_frame_bytes(np.int32(1000))) is int  # type: ignore[arg-type]
    for wrong in (0, -1, 2**63, 1.5, True, "1", None):
        with pytest.raises(InvalidArgument, match=r"max_frame_bytes .* is not a whole number of bytes from 1"):
            check_max_frame_bytes(wrong)  # type: ignore[arg-type]


def test_a_label_stands_in_for_a_version() -> None:
    assert check_call("echo", 1.0, None, 0, "stable") == (1.0, 0, 0, b"", "stable")
    assert check_call("echo", 1.0, Latest(b"s" * 16), 0, "stable") == (1.0, 0, 0, b"s" * 16, "stable")
    with pytest.raises(InvalidArgument, match="version 3 and label 'stable' are both given; leave one of them out"):
        check_call("echo", 1.0, 3, 0, "stable")
    for wrong in ("", "-a", "a b", "a" * 129, 3, ["stable"], b"stable"):
        with pytest.raises(InvalidArgument, match=r"label .* is not 1 to 128 letters"):
            check_call("echo", 1.0, None, 0, wrong)  # type: ignore[arg-type]


def test_a_signature_stands_in_for_a_version() -> None:
    assert check_call("echo", 1.0, Latest(b"s" * 16), 0) == (1.0, 0, 0, b"s" * 16, "")
    for wrong in (b"", b"s" * 15, "s" * 16, None):
        with pytest.raises(InvalidArgument, match="is not 16 bytes; make it with signature_of"):
            check_call("echo", 1.0, Latest(wrong), 0)  # type: ignore[arg-type]
