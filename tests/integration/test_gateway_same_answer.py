"""A tensor is the same on every way in, bit for bit, where the format has it at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from tests.support.processes import running_gateway, running_gateway_with_broker, running_workers, wait_for_workers
from tests.support.ways_in import Array, PastGateways, Way, ways_of_gateway

DTYPES = [np.dtype(code) for code in "?bBhHiIqQefd"]


@pytest.fixture(scope="module")
def ways() -> Iterator[list[Way]]:
    """Through a gateway with a broker in its process, through another one that uses this broker, and past both."""
    with running_gateway_with_broker() as (near, broker), running_workers(broker.backend, "--executor", "echo"):
        wait_for_workers(broker.frontend, 1)
        with running_gateway(broker.frontend) as gateway:
            through = [way for each in (gateway, near) for way in ways_of_gateway(each.http, each.grpc)]
            made: list[Way] = [PastGateways(broker.frontend), *through]
            yield made
            for way in made:
                way.close()


def check(ways: list[Way], x: Array) -> int:
    """Send an array on all ways that carry it. Returns how many these are."""
    carrying = [way for way in ways if way.carries(x)]
    for way in carrying:
        y = way.echo(x)
        assert (y.dtype, y.shape) == (x.dtype, x.shape), type(way).__name__
        assert y.tobytes() == x.tobytes(), type(way).__name__
    return len(carrying)


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: numpy_strategies.arrays(
            dtype, numpy_strategies.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
        )
    )
)
@settings(max_examples=60)
def test_random_tensors(ways: list[Way], x: Array) -> None:
    assert check(ways, x) >= 7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_edges_of_a_datatype(ways: list[Way], dtype: np.dtype) -> None:
    if dtype.kind == "f":
        info = np.finfo(dtype)
        values = [info.max, info.min, info.tiny, info.smallest_subnormal, -0.0, np.inf, -np.inf, 0.1]
    elif dtype.kind == "b":
        values = [True, False]
    else:
        values = [np.iinfo(dtype).max, np.iinfo(dtype).min, 1]
    edges = np.array(values, dtype)
    check(ways, edges)
    check(ways, edges[:1].reshape(()))
    check(ways, edges[:0].reshape(3, 0, 2))
    check(ways, edges.reshape(1, 1, -1, 1, 1))


def test_every_way_carries_a_float(ways: list[Way]) -> None:
    assert check(ways, np.arange(6, dtype=np.float32).reshape(2, 3)) == len(ways)


@pytest.mark.parametrize("dtype", DTYPES[-3:], ids=str)
def test_nan(ways: list[Way], dtype: np.dtype) -> None:
    """Formats of text carry a NaN, but neither its sign nor its payload."""
    x = np.array([np.nan, 1.5], dtype)
    check(ways, x)
    for way in ways:
        if not way.carries(x) and way.carries(x[1:]):
            y = way.echo(x)
            assert np.isnan(y[0]) and y[1] == 1.5, type(way).__name__


def test_the_bits_of_a_nan(ways: list[Way]) -> None:
    x = np.array([0x7FC01234, 0xFFC00001], np.uint32).view(np.float32)
    assert check(ways, x) == 7
