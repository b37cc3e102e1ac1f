"""A real Triton serves what `zmq-offload export` writes, with a worker's results to the last bit.

Set TRITON_PYTHON to the Python of an environment with nvidia-pytriton, zmq-offload[tvm] and numpy<2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
import tvm
from tritonclient.utils import InferenceServerException
from tvm import relax

from tests.support import onnx_models
from tests.support.processes import ROOT, eventually, running_broker, running_workers
from tests.support.servers import Triton, tritonserver
from zmq_offload import Client, load
from zmq_offload.artifacts.repository import LIBRARY, Batching, ModelVersion, Repository
from zmq_offload.compile import compile_model
from zmq_offload.compile.target import host_target
from zmq_offload.errors import Unavailable
from zmq_offload.export import Running, export_to_triton
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec

pytestmark = [
    pytest.mark.load,
    pytest.mark.skipif("TRITON_PYTHON" not in os.environ, reason="TRITON_PYTHON is not set"),
]
WIDTH = 16
HELD = """
import pathlib, time
from workers.triton import TritonPythonModel as Exported

class TritonPythonModel(Exported):
    def initialize(self, arguments):
        self.folder = pathlib.Path(arguments["model_repository"])
        super().initialize(arguments)

    def execute(self, requests):
        (self.folder / "started").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        responses = super().execute(requests)
        with (self.folder / "ended").open("a") as file:
            file.writelines(f"{response.has_error()}\\n" for response in responses)
        return responses
"""
"""Begins a run, and ends it when there is a file. Says of each response whether it is an error."""


class Served(NamedTuple):
    """A Triton with its repository, and a broker whose worker serves the same models."""

    triton: Triton
    models: Path
    bundle: Path
    """The device bundle of `fixed`, with a fallback."""
    broker: str
    log: Path

    def call(self, model: str, inputs: dict[str, Array], *, kind: Any = tritonclient.grpc, **options: Any) -> Any:
        address = self.triton.grpc if kind is tritonclient.grpc else self.triton.http
        client = kind.InferenceServerClient(address)
        try:
            given = [
                kind.InferInput(name, x.shape, tritonclient.utils.np_to_triton_dtype(x.dtype))
                for name, x in inputs.items()
            ]
            for tensor, x in zip(given, inputs.values(), strict=True):
                tensor.set_data_from_numpy(x)
            return client.infer(model, given, **options)
        finally:
            client.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`fixed` takes two rows and has versions 1 and 2, `rows` any number, and `batched` up to 8 at a time."""
    folder = tmp_path_factory.mktemp("triton")
    path = onnx_models.mlp(folder / "mlp.onnx", WIDTH)
    for name, rows, batching in (("fixed", 2, None), ("rows", "N", None), ("batched", "N", Batching(8, 2000))):
        shared = {"cut": ["h2"], "until": ["h4"], "repository": folder / "repository"}
        for number in (1, 2) if name == "fixed" else (1,):
            compile_model(
                path, inputs={"x": (rows, 8)}, name=name, output=folder / f"{name}{number}", batching=batching,
                version=number, with_fallback=True, **shared,
            )  # fmt: skip
    Repository(folder / "repository").write("types", 1, _every_datatype)
    models = folder / "models"
    export_to_triton(folder / "repository", models, running=Running(instances=2, threads=1))
    damaged = shutil.copytree(models / "fixed", models / "damaged")
    _renamed(damaged)
    with (damaged / "2/subgraph.so").open("ab") as file:
        file.write(b"!")
    held = shutil.copytree(models / "fixed", models / "held")
    _renamed(held)
    shutil.rmtree(held / "2")
    (held / "1/model.py").write_text(HELD)
    loaded = [f"--load-model={name}" for name in ("fixed", "rows", "batched", "types", "held")]
    python = os.environ["TRITON_PYTHON"]
    options = ["--repository", str(folder / "repository"), "--threads", "1"]
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, *options),
        tritonserver(folder, python, models, "--model-control-mode=explicit", *loaded) as triton,
    ):
        with Client(fabric.frontend) as client:
            eventually(lambda: len(client.models()) == 5, timeout=60)
        yield Served(triton, models, folder / "fixed2/device", fabric.frontend, folder / "server.log")


def _every_datatype(folder: Path) -> ModelVersion:
    """A model that returns each of its inputs, one of each datatype, with the columns in reverse."""
    builder = relax.BlockBuilder()
    inputs = [TensorSpec(name.lower(), name, (2, 3)) for name in DATATYPES]
    given = [relax.Var(spec.name, relax.TensorType(spec.shape, str(spec.dtype))) for spec in inputs]
    with builder.function("main", given):
        builder.emit_func_output(relax.Tuple([builder.emit(relax.op.flip(x, axis=1)) for x in given]))
    tvm.compile(builder.get(), target=host_target()).export_library(str(folder / LIBRARY))
    outputs = [TensorSpec(f"{spec.name}_back", spec.datatype, spec.shape) for spec in inputs]
    return ModelVersion("types", 1, tuple(inputs), tuple(outputs), None, tvm.__version__, "")


def _renamed(folder: Path) -> None:
    """The files of the model `fixed` name the copy, which has one instance."""
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace('"fixed"', f'"{folder.name}"').replace("count: 2", "count: 1"))
    for description in folder.glob("*/model.json"):
        description.write_text(description.read_text().replace('"fixed"', f'"{folder.name}"'))


@pytest.mark.parametrize("kind", [tritonclient.grpc, tritonclient.http])
@pytest.mark.parametrize("model", ["fixed", "rows", "batched"])
def test_the_outputs_are_a_workers_to_the_last_bit(served: Served, model: str, kind: Any) -> None:
    with Client(served.broker) as client:
        for seed in range(20):
            x = onnx_models.random(2 if model == "fixed" else 1 + seed % 5, WIDTH, seed=seed)
            expected = client.infer(model, {"h2": x})["h4"]
            found = served.call(model, {"h2": x}, kind=kind).as_numpy("h4")
            assert found.tobytes() == expected.tobytes() and found.shape == expected.shape


@pytest.mark.parametrize("kind", [tritonclient.grpc, tritonclient.http])
def test_every_datatype_arrives(served: Served, kind: Any) -> None:
    random = np.random.default_rng(0)
    inputs = {name.lower(): random.integers(0, 100, (2, 3)).astype(dtype) for name, dtype in DATATYPES.items()}
    found = served.call("types", inputs, kind=kind)
    for name, x in inputs.items():
        back = found.as_numpy(f"{name}_back")
        assert back.dtype == x.dtype and np.array_equal(back, x[:, ::-1]), name


def test_requests_that_run_together_each_get_their_own_rows(served: Served) -> None:
    def call(number: int) -> bool:
        x = onnx_models.random(1 + number % 3, WIDTH, seed=number)
        with Client(served.broker) as client:
            expected = client.infer("batched", {"h2": x}, timeout=60)["h4"]
        return np.array_equal(served.call("batched", {"h2": x}).as_numpy("h4"), expected)

    before = _executions(served)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(200)))
    requests, runs = (after - was for after, was in zip(_executions(served), before, strict=True))
    assert requests == 200 and runs < requests


def _executions(served: Served) -> tuple[int, int]:
    """The requests for `batched` that succeeded, and the runs that they took."""
    with tritonclient.http.InferenceServerClient(served.triton.http) as client:
        (found,) = client.get_inference_statistics("batched")["model_stats"]
    return found["inference_stats"]["success"]["count"], found["execution_count"]


def test_each_version_is_served_and_each_instance_is_a_process(served: Served) -> None:
    x = {"h2": onnx_models.random(2, WIDTH, seed=3)}
    for version in ("1", "2"):
        assert served.call("fixed", x, model_version=version).get_response().model_version == version
    assert served.call("fixed", x).get_response().model_version == "2"
    stubs = psutil.Process(served.triton.process.pid).children(recursive=True)
    names = [" ".join(stub.cmdline()) for stub in stubs]
    assert sum("/fixed/1/model.py" in name for name in names) == 2


@pytest.mark.parametrize("kind", [tritonclient.grpc, tritonclient.http])
@pytest.mark.parametrize("model", ["fixed", "rows", "batched"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"h2": np.zeros((9, WIDTH + 1), "f4")},
        {"h2": np.zeros((2, WIDTH), "f8")},
        {"h2": np.zeros(WIDTH, "f4")},
        {"h3": np.zeros((2, WIDTH), "f4")},
        {"h2": np.full((2, WIDTH), b"text", object)},
    ],
    ids=["shape", "datatype", "rank", "name", "text"],
)
def test_a_wrong_input_is_tritons_error_and_ends_nothing(
    served: Served, model: str, kind: Any, wrong: dict[str, Array]
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        served.call(model, wrong, kind=kind)
    assert raised.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert served.call(model, {"h2": np.zeros((2, WIDTH), "f4")}).as_numpy("h4").shape == (2, 8)


def test_a_damaged_library_is_not_served_and_triton_says_why(served: Served) -> None:
    with tritonclient.grpc.InferenceServerClient(served.triton.grpc) as client:
        with pytest.raises(InferenceServerException):
            client.load_model("damaged")
        assert not client.is_model_ready("damaged", "2")
    assert "subgraph.so is damaged: its checksum is" in served.log.read_text()


def test_a_request_whose_client_gave_up_is_not_run(served: Served) -> None:
    x = {"h2": np.zeros((2, WIDTH), "f4")}
    folder = served.models / "held"
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(served.call, "held", x)
            eventually((folder / "started").exists)
            with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
                served.call("held", x, client_timeout=0.5)
        finally:
            (folder / "go").touch()
        first.result()
    served.call("held", x)
    assert (folder / "ended").read_text().split() == ["False", "True", "False"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_bundle_runs_on_triton_as_through_the_broker(served: Served, scheme: str) -> None:
    items = [onnx_models.random(2, 8, seed=seed) for seed in range(12)]
    with load(served.bundle, broker=served.broker) as model:
        expected = [model(x).tobytes() for x in items]
    with load(served.bundle, server=f"{scheme}://{getattr(served.triton, scheme)}") as model:
        assert [model(x).tobytes() for x in items] == expected
        assert [y.tobytes() for y in model.map(items, depth=4)] == expected


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_when_triton_is_killed_a_bundle_goes_on_elsewhere(served: Served, tmp_path: Path, scheme: str) -> None:
    items = [onnx_models.random(2, 8, seed=seed) for seed in range(12)]
    only = ["--model-control-mode=explicit", "--load-model=fixed"]
    with tritonserver(tmp_path, os.environ["TRITON_PYTHON"], served.models, *only) as triton:
        url = f"{scheme}://{getattr(triton, scheme)}"
        with (
            load(served.bundle, server=url, timeout=5) as alone,
            load(served.bundle, server=[url, served.broker], timeout=20) as model,
        ):
            expected = [alone(x).tobytes() for x in items]
            results = model.map(items, depth=4)
            found = [next(results) for _ in range(4)]
            triton.process.kill()
            found += list(results)
            assert [y.tobytes() for y in found] == expected
            began = time.monotonic()
            with pytest.raises(Unavailable):
                alone(items[0])
            assert time.monotonic() - began < 6
            alone.offload = "auto"
            for _ in range(5):
                alone(items[0])
            assert alone.statistics.fell_back


def test_the_example_runs_its_two_commands(tmp_path: Path) -> None:
    for arguments in (["make", "--small"], ["serve", "--python", os.environ["TRITON_PYTHON"], "--pictures", "3"]):
        done = subprocess.run(
            [sys.executable, "-m", f"examples.triton.{arguments[0]}", *arguments[1:]],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    *pictures, last = done.stdout.splitlines()
    assert [line.startswith(f"picture {at}: label ") for at, line in enumerate(pictures)] == [True] * 3
    assert re.fullmatch(r"[\d.]+ ms a picture, the heads at grpc://127\.0\.0\.1:\d+", last)
