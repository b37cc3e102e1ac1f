"""Views of tensors can be written to, whatever NumPy's DLPack says."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import tvm

from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.views import view_of, writable_view_of


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """DLPack as it is before NumPy 2.1."""
    exported = np.from_dlpack

    def imported(tensor: Any) -> Array:
        view: Array = exported(tensor).view()
        view.flags.writeable = False
        return view

    monkeypatch.setattr(np, "from_dlpack", imported)


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("dtype", ["float32", "int8", "bool"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (), (0, 4)])
def test_a_view_is_writable_even_if_dlpack_gives_a_read_only_one(shape: tuple[int, ...], dtype: str) -> None:
    tensor = tvm.runtime.empty(shape, dtype, tvm.cpu())
    view = writable_view_of(tensor)
    view[...] = 1
    assert (tensor.numpy() == 1).all() and (view.shape, view.dtype) == (shape, np.dtype(dtype))


@pytest.mark.usefixtures("read_only")
def test_a_view_keeps_the_memory() -> None:
    tensor = tvm.runtime.tensor(np.full(1 << 20, 3.0))
    view = writable_view_of(tensor)
    del tensor
    gc.collect()
    assert (view == 3).all()


def test_numpys_own_views_are_taken_where_they_are_writable() -> None:
    view = view_of(tvm.runtime.empty((3,), "float32", tvm.cpu()))
    view[...] = 1
    assert view.flags.writeable and view.tolist() == [1, 1, 1]
