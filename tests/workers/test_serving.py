"""One request or a batch through an executor. A faulty request fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from workers.serving import Echo, batching_of, bounded, execute, prepare
from zmq_offload.artifacts.repository import Batching, ModelVersion
from zmq_offload.errors import Internal, InvalidArgument
from zmq_offload.protocol.payload import decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import TensorSpec

ROWS = TensorSpec("x", "FP32", (-1, 2))
MODEL = ModelVersion("m", 1, (ROWS,), (ROWS,), None, "", "", batching=Batching(4))


class Doubling:
    """Doubles its input, and fails if any of it is negative."""

    model = MODEL

    def __init__(self) -> None:
        self.runs: list[int] = []

    def run(self, requests: Sequence[Sequence[Any]]) -> list[list[Any]]:
        self.runs.append(len(requests))
        if any((inputs[0] < 0).any() for inputs in requests):
            raise ValueError("negative")
        return [[inputs[0] * 2] for inputs in requests]


def frames(x: np.ndarray) -> list[bytes]:
    return [bytes(frame) for frame in encode_tensors({"x": x})]


def test_requests_of_one_group_have_equal_shapes_but_for_the_batch() -> None:
    executor = Doubling()
    one, two = (prepare(executor, frames(np.ones((rows, 2), "f4")), MODEL.batching) for rows in (1, 3))
    assert (one.group, one.rows) == (two.group, 1)
    assert two.rows == 3
    assert prepare(executor, frames(np.ones((1, 2), "f4")), None).group is None


def test_a_batch_larger_than_the_model_takes_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the batch has 5 rows; it takes at most 4"):
        prepare(Doubling(), frames(np.ones((5, 2), "f4")), MODEL.batching)


def test_a_bad_request_in_a_batch_fails_alone() -> None:
    executor = Doubling()
    jobs = [prepare(executor, frames(np.full((1, 2), value, "f4")), MODEL.batching) for value in (1, -1, 3)]
    first, second, third = execute(jobs)
    assert executor.runs == [3, 1, 1, 1]
    assert isinstance(second, Internal)
    assert "negative" in second.message
    for outcome, value in ((first, 2), (third, 6)):
        assert isinstance(outcome, list)
        np.testing.assert_array_equal(decode_tensors([bytes(f) for f in outcome])["x"], np.full((1, 2), value))


def test_echo_returns_what_it_gets_and_never_batches() -> None:
    job = prepare(Echo(), frames(np.ones((2, 2), "f4")), Batching(4))
    assert job.group is None
    (outcome,) = execute([job])
    assert isinstance(outcome, list)
    assert [bytes(f) for f in outcome] == frames(np.ones((2, 2), "f4"))


def test_a_workers_option_overrides_the_model_and_fixed_shapes_never_batch() -> None:
    fixed = ModelVersion("f", 1, (TensorSpec("x", "FP32", (1, 2)),), (ROWS,), None, "", "")
    assert batching_of(MODEL, None) == Batching(4)
    assert batching_of(MODEL, Batching(8, 5)) == Batching(8, 5)
    assert batching_of(fixed, Batching(8)) is None


@pytest.mark.parametrize(("own", "brokers"), [(99, 1000), (1000, 99)])
def test_an_output_over_the_frame_limit_is_an_error_that_names_both_limits(own: int, brokers: int) -> None:
    outcome = [b"head", b"x" * 100]
    assert bounded(outcome, 100, 100) is outcome
    error = bounded(outcome, own, brokers)
    assert isinstance(error, InvalidArgument)
    assert f"100 bytes; this worker's --max-frame-bytes is {own}, the broker's {brokers}" in str(error)
    assert bounded(error, 1, 1) is error
