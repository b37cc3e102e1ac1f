"""A real Triton with the models of the contract.

Set TRITON_PYTHON to the Python of an environment with nvidia-pytriton.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.oracle import Triton
from tests.support.servers import tritonserver
from tests.transports.contract import TWO, Contract, X
from tests.transports.models import MODELS, Specs
from zmq_offload.errors import NotFound
from zmq_offload.transports.client import ServerClient

if "TRITON_PYTHON" not in os.environ:
    pytest.skip("TRITON_PYTHON is not set", allow_module_level=True)

_MODEL = """
import json
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, arguments):
        self.config = json.loads(arguments["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = self.config["name"]
        if name == "fails":
            1 / 0
        end = time.monotonic() + 2
        while name == "slow" and time.monotonic() < end and not request.is_cancelled():
            time.sleep(0.02)
        outputs = []
        for given, returned in zip(self.config["input"], self.config["output"]):
            array = pb.get_input_tensor_by_name(request, given["name"]).as_numpy()
            array = array if name == "typed" else array * np.float32(2)
            array = {"wrong-shape": np.ones(3, np.float32), "wrong-type": np.ones(2, np.float64)}.get(name, array)
            outputs.append(pb.Tensor("z" if name == "wrong-name" else returned["name"], array))
        return pb.InferenceResponse(outputs)
"""


def _config(inputs: Specs, outputs: Specs) -> str:
    def tensors(specs: Specs) -> str:
        return ", ".join(
            f'{{ name: "{one.name}", data_type: TYPE_{one.datatype}, dims: {list(one.shape)} }}' for one in specs
        )

    return (
        f'backend: "python"\nversion_policy: {{ all {{}} }}\ninput [{tensors(inputs)}]\noutput [{tensors(outputs)}]\n'
    )


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder: Path = tmp_path_factory.mktemp("triton")
    for name, versions in MODELS.items():
        if name == "scalar":
            continue  # Triton has no tensors without dimensions
        numbers = versions if name == "double" else [1]  # all versions have the signature of the configuration
        for number in numbers:
            (folder / "models" / name / str(number)).mkdir(parents=True)
            (folder / "models" / name / str(number) / "model.py").write_text(_MODEL)
        (folder / "models" / name / "config.pbtxt").write_text(_config(*versions[1]))
    with tritonserver(folder, os.environ["TRITON_PYTHON"], folder / "models") as running:
        yield running


class TritonContract(Contract):
    """The contract, as far as Triton has such models."""

    def test_a_scalar_stays_one(self, shared: ServerClient) -> None:
        pytest.skip("Triton has no tensors without dimensions")

    def test_a_version_is_what_was_asked_for(self, shared: ServerClient) -> None:
        assert shared.infer("double", {"x": X}, version=1).version == 1
        assert shared.infer("double", {"x": X}).version == 2
        assert shared.infer("moved", {"x": TWO}, version=1, priority=100).version == 1
        with pytest.raises(NotFound):
            shared.infer("double", {"x": X}, version=9)

    def test_many_large_tensors_go_at_once(self, shared: ServerClient) -> None:
        inputs = [np.full((100_000, 3), number, np.float32) for number in range(8)]
        for x, future in zip(inputs, [shared.submit("double", {"x": x}) for x in inputs], strict=True):
            np.testing.assert_array_equal(future.result(20)["y"], x * 2)


class TestGrpc(TritonContract):
    scheme = "grpc"

    @pytest.fixture
    def server(self, triton: Triton) -> str:
        return f"grpc://{triton.grpc}"


class TestHttp(TritonContract):
    scheme = "http"

    @pytest.fixture
    def server(self, triton: Triton) -> str:
        return f"http://{triton.http}"
