"""The servers to which the fabric is compared, each in processes of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.fabric import bare, fabric, until_served
from tests.support import onnx_models
from tests.support.processes import ROOT, running_broker, running_workers
from tests.support.servers import Command, Missing, free_port, has, listens, server, tritonserver, until_up
from zmq_offload import Client
from zmq_offload.compile import compile_model


@contextmanager
def zmq_proxy(folder: Path, python: str, sizes: list[int]) -> Iterator[dict[str, Command]]:
    with bare("proxy", "echo") as (endpoint, _, _):
        yield {"bare pyzmq, zmq.proxy": [python, "bare", endpoint]}


@contextmanager
def this_fabric(folder: Path, python: str, sizes: list[int]) -> Iterator[dict[str, Command]]:
    """The fabric with an echo worker, and with a ReLU in TVM."""
    bundles = folder / "bundles"
    for size in sizes:
        nodes = [
            onnx_models.helper.make_node("Abs", ["x"], ["h"]),
            onnx_models.helper.make_node("Relu", ["h"], ["y"]),
        ]
        shape = {"x": (size // 4,)}, {"y": (size // 4,)}
        model = onnx_models.write(folder / f"relu{size}.onnx", nodes, *shape, {})
        compile_model(
            model, inputs=shape[0], cut=["h"], name=f"relu{size}", output=bundles / str(size),
            repository=folder / "repository",
        )  # fmt: skip
    with ExitStack() as stack:
        echo = stack.enter_context(fabric())
        broker = stack.enter_context(running_broker())
        repository = str(folder / "repository")
        stack.enter_context(running_workers(broker.backend, "--repository", repository, "--threads", "1"))
        with Client(broker.frontend) as client:
            until_served(client, f"relu{sizes[-1]}")
        yield {
            "zmq-offload, echo": [python, "fabric", echo.frontend, "echo"],
            "zmq-offload, TVM ReLU": [python, "fabric", broker.frontend, "relu{}"],
            "zmq-offload, model(x)": [python, "compiled", broker.frontend, str(bundles)],
        }


@contextmanager
def tvm_rpc(folder: Path, python: str, sizes: list[int]) -> Iterator[dict[str, Command]]:
    if not has(python, "tvm"):
        raise Missing("TVM is not installed: pip install 'zmq-offload[tvm]'")
    import tvm
    from tvm import te, topi

    from zmq_offload.compile.build import export

    for size in sizes:
        given = te.placeholder((size // 4,), "float32", "x")
        function = te.create_prim_func([given, topi.nn.relu(given)]).with_attr("global_symbol", "main")
        target = tvm.target.Target("llvm")
        library = tvm.compile(tvm.IRModule({"main": function}), target=target)
        export(library, folder / f"relu{size}.so", target)
    port = free_port()
    command = [python, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--port", str(port)]
    with server([*command, "--port-end", str(port + 1)], {}, folder) as process:
        until_up(lambda: "bind to" in (folder / "server.log").read_text(), process, "TVM's RPC server")
        yield {"TVM RPC": [python, "tvm_rpc", str(port), str(folder)]}


_TRITON_MODEL = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, "x") for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", x.as_numpy())]) for x in inputs]
"""
_TRITON_CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_FP32, dims: [-1] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [-1] }]
"""


@contextmanager
def triton(folder: Path, python: str, sizes: list[int]) -> Iterator[dict[str, Command]]:
    """The server in the package nvidia-pytriton, with its Python backend, without GPU or container."""
    if not has(python, "tritonclient.grpc, tritonclient.http"):
        raise Missing("tritonclient is not installed: --triton-python VENV/bin/python of one with tritonclient[all]")
    version = folder / "models" / "echo" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_TRITON_MODEL)
    (version.parent / "config.pbtxt").write_text(_TRITON_CONFIG)
    with tritonserver(folder, python, folder / "models") as running:
        yield {
            "Triton, gRPC": [python, "triton", "grpc", running.grpc],
            "Triton, HTTP": [python, "triton", "http", running.http],
        }


_MOSEC_SERVER = """
from mosec import Server, Worker

class Echo(Worker):
    def deserialize(self, data):
        return data
    def serialize(self, data):
        return data
    def forward(self, data):
        return data

if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=1)
    server.run()
"""


@contextmanager
def mosec_server(folder: Path, python: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """An echo, and its port."""
    if not has(python, "mosec"):
        raise Missing("mosec is not installed: --mosec-python VENV/bin/python of one with mosec")
    (folder / "server.py").write_text(_MOSEC_SERVER)
    port = free_port()
    command = [python, str(folder / "server.py"), "--address", "127.0.0.1", "--port", str(port)]
    with server([*command, "--max-request-size", str(1 << 27), "--timeout", "60000"], {}, folder) as process:
        until_up(lambda: listens(port), process, "mosec")
        yield process, port


@contextmanager
def mosec(folder: Path, python: str, sizes: list[int]) -> Iterator[dict[str, Command]]:
    with mosec_server(folder, python) as (_, port):
        yield {"mosec, HTTP": [python, "mosec", str(port)]}


SERVERS = {f.__name__: f for f in (zmq_proxy, this_fabric, tvm_rpc, triton, mosec)}
CLIENT = str(ROOT / "tests/benchmarks/peer_client.py")


@contextmanager
def client(command: Command) -> Iterator[subprocess.Popen[str]]:
    """The process of a client that is ready."""
    python, *arguments = command
    process = subprocess.Popen(
        [python, CLIENT, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Missing(f"the client of {arguments[0]} failed; its error is above")
        yield process
    finally:
        process.kill()
        process.communicate()
