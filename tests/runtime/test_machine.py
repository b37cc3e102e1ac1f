"""One virtual machine on one library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from zmq_offload.artifacts.repository import LIBRARY
from zmq_offload.compile import Compiled
from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.machine import Machine, check_tvm_version, load_library

H2 = TensorSpec("h2", "FP32", (2, 16))


def test_with_and_without_a_signature_it_computes_the_same(compiled_mlp: Compiled) -> None:
    library = load_library(compiled_mlp.subgraphs[0] / LIBRARY)
    fixed, free = Machine(library, [H2]), Machine(library)
    for seed in range(2):
        h2 = onnx_models.random(2, 16, seed=seed)
        (found,), (other,) = fixed.run([h2]), free.run([h2])
        np.testing.assert_array_equal(found, other)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-(h2 @ onnx_models.random(16, 8, seed=2)))), atol=1e-5)


def test_a_number_of_arrays_that_does_not_fit_is_an_error(compiled_mlp: Compiled) -> None:
    machine = Machine(load_library(compiled_mlp.subgraphs[0] / LIBRARY), [H2])
    with pytest.raises(ValueError, match="zip"):
        machine.run([])


def test_a_file_that_is_not_a_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"nothing")
    with pytest.raises(FailedPrecondition, match=r"x\.so cannot be loaded: "):
        load_library(tmp_path / "x.so")


def test_another_version_of_tvm_is_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"^it was built by TVM 0\.1, this is TVM .*; compile it again$"):
        check_tvm_version("it", "0.1")
