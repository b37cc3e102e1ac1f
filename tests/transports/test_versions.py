"""Which version of a model a call with a signature goes to."""

from __future__ import annotations

import pytest

from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol.tensors import TensorSpec, signature_of
from zmq_offload.transports.transport import Served
from zmq_offload.transports.versions import FRESH, Versions

X, Y, WIDE = TensorSpec("x", "FP32", (4,)), TensorSpec("y", "FP32", (4,)), TensorSpec("x", "FP32", (8,))
WANTED = signature_of((X,), (Y,))


def test_the_first_version_that_fits_is_used_for_a_while() -> None:
    versions = Versions()
    assert not versions.known("m", WANTED, 0) and versions.version("m", WANTED) is None
    served = [Served(3, (WIDE,), (Y,)), Served(2, (X,), (Y,)), Served(1, (X,), (Y,))]
    assert versions.choose("m", WANTED, served, 0) == 2 == versions.version("m", WANTED)
    assert versions.known("m", WANTED, FRESH - 1) and not versions.known("m", WANTED, FRESH)
    versions.forget("m", WANTED)
    assert not versions.known("m", WANTED, 0)


def test_without_a_version_that_fits_the_served_ones_are_described() -> None:
    with pytest.raises(FailedPrecondition, match=r"version 3 takes x.*8.* and returns y.*; it takes nothing and"):
        Versions().choose("m", WANTED, [Served(3, (WIDE,), (Y,)), Served(None, (), (Y,))], 0)
